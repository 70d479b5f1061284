import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.datasets import objects
from scratchdet_jax.datasets.writing import restore
from scratchdet_jax.errors import UserError
from scratchdet_jax.tools import prepare
from tests.command import exit_status

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "My cells"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (path / part).mkdir(parents=True)
    picture = cv2.imencode(".jpg", np.zeros((20, 20, 3), np.uint8))[1].tobytes()
    for name in ("a", "b"):
        (path / "JPEGImages" / f"{name}.jpg").write_bytes(picture)
        boxes = "".join(
            f"<object><name>{kind}</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>{xmax}</xmax>"
            "<ymax>9</ymax></bndbox></object>"
            for kind, xmax in (("red", 8), ("white", 9), ("red", 1))
        )
        (path / "Annotations" / f"{name}.xml").write_text(f"<annotation>{boxes}</annotation>")
        (path / "ImageSets" / "Main" / f"set_{name}.txt").write_text(name)
    return path


def test_voc_prints_the_report_and_prepares(folder, tmp_path, capsys):
    data = tmp_path / "data"
    arguments = ["voc", f"--folder={folder}", "--name=cells", f"--data_dir={data}"]
    assert exit_status(prepare.main, *arguments) == 0
    printed = capsys.readouterr().out
    assert "set_a: 1 image\n" in printed
    assert "2 × box without area (left out)" in printed
    assert "Annotations/b.xml: object 3 (red)" in printed
    assert "use it as voc_folder/cells:SPLIT, SPLIT being one of set_a, set_b" in printed
    source = DetectionSource("voc_folder/cells:set_a+set_b", data)
    assert source.class_names == ("red", "white")
    assert len(source) == 2


def test_voc_with_classes_splits_and_the_default_name(folder, tmp_path, capsys):
    data = tmp_path / "data"
    arguments = ["voc", f"--folder={folder}", f"--data_dir={data}"]
    more = ["--classes=white,black", "--splits=set_b"]
    assert exit_status(prepare.main, *arguments, *more) == 0
    assert "object of an unknown class" in capsys.readouterr().out
    source = DetectionSource("voc_folder/my_cells:set_b", data)
    assert source.class_names == ("white", "black")
    assert source[0]["labels"].tolist() == [1]


def test_a_users_mistake_is_one_sentence_and_status_1(folder, tmp_path, capsys):
    arguments = ["voc", f"--folder={tmp_path}", f"--data_dir={tmp_path}"]
    assert exit_status(prepare.main, *arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "is not in VOC layout" in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.fixture
def coco(tmp_path):
    """Arguments for two splits."""
    picture = cv2.imencode(".jpg", np.zeros((20, 20, 3), np.uint8))[1].tobytes()
    arguments = []
    for split in ("train", "val"):
        images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(6)]
        boxes = [
            {"id": i, "image_id": i, "category_id": 4, "bbox": [1, 2, 3 * (i > 0), 4]}
            for i in range(6)
        ]
        (tmp_path / split).mkdir()
        for image in images:
            (tmp_path / split / image["file_name"]).write_bytes(picture)
        content = {"images": images, "annotations": boxes, "categories": [{"id": 4, "name": "x"}]}
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
        arguments.append(f"--split={split}:{tmp_path / f'{split}.json'}:{tmp_path / split}")
    return ["coco", *arguments, "--name=mine", f"--data_dir={tmp_path / 'data'}"]


def test_coco_prints_the_report_and_prepares(coco, tmp_path, capsys):
    assert exit_status(prepare.main, *coco) == 0
    printed = capsys.readouterr().out
    assert "train: 6 images (1 without boxes)" in printed
    assert "10 boxes (0 crowd) of 1 class: x 10" in printed
    assert "2 × box without area (left out)" in printed
    assert "use it as coco_folder/mine:SPLIT, SPLIT being one of train, val" in printed
    assert len(DetectionSource("coco_folder/mine:train+val", tmp_path / "data")) == 12


def test_strict_prints_the_report_and_exits_with_status_1(coco, folder, tmp_path, capsys):
    voc = ["voc", f"--folder={folder}", "--name=cells", f"--data_dir={tmp_path / 'data'}"]
    for arguments in (coco, voc):
        assert exit_status(prepare.main, *arguments, "--strict") == 1
        captured = capsys.readouterr()
        assert "2 × box without area (left out)" in captured.out
        assert "--strict" in captured.err
        assert captured.err.count("\n") == 1
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("split", ["train", "train:a.json", "train:a.json:b:c", ":a.json:b"])
def test_a_split_that_is_not_three_parts_is_explained(split, capsys):
    assert exit_status(prepare.main, "coco", f"--split={split}", "--name=x") == 2
    assert "is not NAME:FILE.json:FOLDER" in capsys.readouterr().err


def run_until(arguments, patch, reached):
    """Runs the tool in another process, slowed down by `patch`, and kills it once `reached`."""
    program = (
        "import sys, time\n"
        "from scratchdet_jax.datasets import folders\n"
        f"{patch}\n"
        "from scratchdet_jax import cli\n"
        "from scratchdet_jax.tools import prepare\n"
        "cli.run(prepare.main)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        while not reached():
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_a_run_killed_while_writing_leaves_no_data_set(coco, tmp_path):
    place = tmp_path / "data" / "coco_folder" / "mine"
    stuck = (
        "read = folders.read_unchanged\n"
        "folders.read_unchanged = lambda image: ("
        "time.sleep(60 * (image.image_id == 3)), read(image))[1]"
    )
    run_until(coco, stuck, lambda: list(place.glob("incomplete.*/*array_record*")))
    assert all(p.name.startswith("incomplete.") for p in place.iterdir())
    with pytest.raises(UserError, match="there is no data set"):
        DetectionSource("coco_folder/mine:train", tmp_path / "data")
    assert exit_status(prepare.main, *coco) == 0
    assert len(DetectionSource("coco_folder/mine:train+val", tmp_path / "data")) == 12
    assert os.listdir(place) == ["1.0.0"]


def test_killed_at_any_moment_force_leaves_the_old_or_the_new_set(coco, tmp_path):
    """Killed at many moments from the first write to the end; the renames are slowed down."""
    assert exit_status(prepare.main, *coco) == 0
    annotations = tmp_path / "train.json"
    content = json.loads(annotations.read_text())
    content["images"].pop()
    annotations.write_text(json.dumps(content))
    program = (
        "import sys, time\n"
        "from scratchdet_jax.datasets import writing\n"
        "from scratchdet_jax.tools import prepare\n"
        "def slow(function):\n"
        "    def run(*arguments):\n"
        "        time.sleep(0.05)\n"
        "        result = function(*arguments)\n"
        "        time.sleep(0.05)\n"
        "        return result\n"
        "    return run\n"
        "writing.write_dataset = slow(writing.write_dataset)\n"
        "writing.Path.rename = slow(writing.Path.rename)\n"
        "print('ready', flush=True)\n"
        "cli.run(prepare.main)\n"
    )
    seen = set()
    for delay in (0.05, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.7):
        command = [sys.executable, "-c", program, *coco, "--force"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.communicate()
        restore(tmp_path / "data" / "coco_folder" / "mine" / "1.0.0")  # as the next command does
        seen.add(len(DetectionSource("coco_folder/mine:train+val", tmp_path / "data")))
    assert seen <= {11, 12}
    assert 12 in seen
    assert exit_status(prepare.main, *coco, "--force") == 0
    assert len(DetectionSource("coco_folder/mine:train+val", tmp_path / "data")) == 11
    assert os.listdir(tmp_path / "data" / "coco_folder" / "mine") == ["1.0.0"]


def test_a_full_disk_is_one_sentence(coco, tmp_path):
    program = (
        "import resource, signal, sys\n"
        "from scratchdet_jax import cli\n"
        "from scratchdet_jax.tools import prepare\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "cli.run(prepare.main)\n"
    )
    command = [sys.executable, "-c", program, *coco]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "cannot be written (File too large): make room" in result.stderr
    assert result.stderr.count("\n") == 1
    assert os.listdir(tmp_path / "data" / "coco_folder" / "mine") == []


def test_ctrl_c_prints_no_traceback_and_does_not_wait_for_the_rest(coco, monkeypatch, capsys):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    seen = []

    def interrupt(data):
        seen.append(data)
        if len(seen) == 1:
            raise KeyboardInterrupt
        time.sleep(0.1)

    monkeypatch.setattr(objects, "check_complete", interrupt)
    assert exit_status(prepare.main, *coco) == 130
    assert len(seen) < 12  # of 12 images
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"


def test_several_processes_at_once_make_one_data_set(coco, tmp_path):
    command = [sys.executable, "-m", "scratchdet_jax.tools.prepare", *coco]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert all(b"use it as coco_folder/mine" in output for output in outputs)
    assert os.listdir(tmp_path / "data" / "coco_folder" / "mine") == ["1.0.0"]
    assert len(DetectionSource("coco_folder/mine:train+val", tmp_path / "data")) == 12


@pytest.fixture
def yolo(tmp_path):
    """Arguments for a set of 10 images."""
    for part in ("images", "labels"):
        (tmp_path / "cells" / part).mkdir(parents=True)
    for n in range(10):
        pixels = np.random.default_rng(n).integers(0, 255, (20, 20, 3), np.uint8)
        picture = cv2.imencode(".jpg", pixels)[1].tobytes()
        (tmp_path / "cells" / "images" / f"{n}.jpg").write_bytes(picture)
        (tmp_path / "cells" / "labels" / f"{n}.txt").write_text(
            "0 0.5 0.5 0.4 0.4\n1 0.2 0.2 .1 .1"
        )
    (tmp_path / "cells" / "data.yaml").write_text("train: images\nnames: [red, white]\n")
    data = f"--data={tmp_path / 'cells' / 'data.yaml'}"
    return ["yolo", data, "--name=cells", f"--data_dir={tmp_path / 'data'}"]


def test_yolo_is_prepared_and_divided(yolo, tmp_path, capsys):
    assert exit_status(prepare.main, *yolo) == 0
    printed = capsys.readouterr().out
    assert "use it as yolo_folder/cells:SPLIT, SPLIT being one of train\n" in printed
    assert "it has only one split: divide it with --val=0.2 --force" in printed
    assert "--config.data.eval=" in printed
    more = ["--val=0.2", "--test=0.1", "--seed=5", "--rename", "red=cell", "--drop=white"]
    assert exit_status(prepare.main, *yolo, *more) == 1
    error = capsys.readouterr().err
    assert "options were not those given now" in error and "--force" in error
    assert exit_status(prepare.main, *yolo, *more, "--force") == 0
    printed = capsys.readouterr().out
    assert "10 boxes of 1 class: cell 10" in printed
    assert "SPLIT being one of train, val, test" in printed
    assert "only one split" not in printed
    assert len(DetectionSource("yolo_folder/cells:val", tmp_path / "data")) == 2


def test_voc_and_coco_take_the_same_options(folder, coco, tmp_path, capsys):
    voc = ["voc", f"--folder={folder}", "--name=cells", f"--data_dir={tmp_path / 'data'}"]
    assert exit_status(prepare.main, *voc, "--rename=white=red") == 0
    assert "4 boxes (0 difficult) of 1 class: red 4" in capsys.readouterr().out
    assert exit_status(prepare.main, *coco, "--classes=x", "--rename", "x = a b ") == 1
    assert "--classes names the class 'x', which" in capsys.readouterr().err
    assert exit_status(prepare.main, *coco, "--classes=a b", "--rename", "x = a b ") == 0
    assert "of 1 class: a b 10" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["voc", "coco", "yolo"])
def test_the_help_shows_the_options(command, capsys):
    with pytest.raises(SystemExit) as end:
        prepare.main(["prepare", command, "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    flags = "--classes --drop --rename --val --test --from --seed --force --strict --data_dir"
    for flag in flags.split():
        assert re.search(rf"{flag}[ ,]", printed)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--val=1.5", "--val=1.5 and --test=0 must be shares of 0 or more"),
        ("--test=20%", "--test: invalid float value: '20%'"),
        ("--rename=a", "'a' is not OLD=NEW"),
        ("--rename==b", "'=b' is not OLD=NEW"),
    ],
)
def test_wrong_values_are_explained(flag, words, yolo, capsys):
    assert exit_status(prepare.main, *yolo, flag) in (1, 2)
    assert words in capsys.readouterr().err


def test_shapes_goes_to_the_data_dir(monkeypatch):
    asked = []
    monkeypatch.setattr(prepare, "prepare_shapes", asked.append)
    assert exit_status(prepare.main, "shapes", "--data_dir=somewhere") == 0
    assert exit_status(prepare.main, "shapes") == 0
    assert asked == ["somewhere", "data"]
