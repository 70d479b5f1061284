"""Every block of docs/using.md runs, in order, on a run of random weights with the same names."""

import re
import shlex
import shutil
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from scratchdet_jax.datasets.folders import prepare_voc_folder
from scratchdet_jax.detector import build_detector
from scratchdet_jax.run.checkpoints import Checkpoints, RunInfo
from scratchdet_jax.run.state import create_state
from scratchdet_jax.tools import export, report
from scratchdet_jax.tools.predict import __main__ as predict
from scratchdet_jax.training.optimizer import make_optimizer
from tests.command import exit_status
from tests.plain import FIELDS, plain_backbone
from tests.small_voc import write_voc
from tests.tiny import tiny_config

PAGE = Path(__file__).parents[1] / "docs" / "using.md"
CLASSES = ("Platelets", "RBC", "WBC")
COMMANDS = {"predict": predict.main, "report": report.main, "export": export.main}


def blocks():
    """(language, text) of the page's blocks, in order."""
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(r"^```(python|sh)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def plain():
    with plain_backbone():
        yield


@pytest.fixture
def place(tmp_path, monkeypatch, plain):
    """A working directory as the page assumes it: two runs, photos, a video."""
    objects = [(name, (10, 20 * n + 10, 60, 20 * n + 40)) for n, name in enumerate(CLASSES)]
    write_voc(tmp_path / "cells", {"train": {}, "val": {"v1": objects, "v2": objects[:1]}})
    prepare_voc_folder(tmp_path / "cells", tmp_path / "data", "cells")
    fields = {"data.dir": str(tmp_path / "data"), "data.eval": "voc_folder/cells:val"}
    config = tiny_config(**FIELDS, **{"eval.score_threshold": 0.0, **fields})
    detector = build_detector(config, CLASSES)
    state = create_state(detector.model, make_optimizer(config), config.image_size, 0)
    checkpoints = Checkpoints(tmp_path / "runs/bccd")
    checkpoints.save(800, jax.device_get(state), RunInfo(config, CLASSES))
    checkpoints.close()
    shutil.copytree(tmp_path / "runs/bccd", tmp_path / "runs/wide")
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name in ("photo.jpg", "photos/a.jpg", "photos/b.jpg"):
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, (48, 64, 3), np.uint8))
    code = cv2.VideoWriter_fourcc(*"mp4v")
    video = cv2.VideoWriter(str(tmp_path / "clip.mp4"), code, 10, (64, 48))
    for _ in range(3):
        video.write(rng.integers(0, 256, (48, 64, 3), np.uint8))
    video.release()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_block_of_the_page_runs(place, capsys):
    found = blocks()
    assert {language for language, _ in found} == {"python", "sh"} and len(found) >= 8
    names = {}
    for language, text in found:
        if language == "python":
            exec(compile(text, str(PAGE), "exec"), names)
            continue
        for line in text.replace("\\\n", " ").splitlines():
            program, name, *arguments = shlex.split(line)
            assert program == "scratchdet"
            assert exit_status(COMMANDS[name], *arguments) == 0, line
    printed = capsys.readouterr().out
    assert "there is no image nowhere.jpg" in printed
    assert "clip.mp4#2" in printed  # listed by the block that reads detections.json
    made = {path.relative_to(place).as_posix() for path in place.rglob("*.*")}
    assert made >= {
        "drawn.png",
        "results.json",
        *("found/detections.json", "found/photo.png", "found/a.png", "found/clip.mp4"),
        "tables/detections.csv",
        *(f"voc/comp4_det_images_{name}.txt" for name in CLASSES),
        "frames/clip/000002.png",
        *("report.html", "report.json", "both.html"),
        *("bccd.jaxexport", "exported/photo.png"),
    }
