"""VOC or COCO is missing: the commands of the message are run, and their fields are opened."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import ml_collections
import pytest

from scratchdet_jax.data.coco_classes import IDS, NAMES
from scratchdet_jax.data.sources import open_split
from scratchdet_jax.datasets.first_use import official
from scratchdet_jax.datasets.voc_xml import VOC_CLASSES
from scratchdet_jax.errors import UserError
from scratchdet_jax.tools import prepare
from tests.command import exit_status
from tests.data.tfds_sets import build_voc
from tests.data.voc_layout import Folder, jpeg, obj

ROOT = Path(__file__).parents[2]
VOC = {
    "2007": {"train": ["000005", "000007"], "val": ["000009"], "test": ["000001", "000002"]},
    "2012": {"train": ["2008_000008"], "val": ["2008_000002", "2008_000003"]},
}
COCO = {"train": [9, 25, 30], "val": [139, 285]}
VOC_TRAIN = "voc/2007:train+validation,voc/2012:train+validation"


def write_voc(folder, years=("2007", "2012")):
    """VOCdevkit as the official archives unpack, with its lists by class."""
    for year in years:
        devkit = Folder(folder / f"VOCdevkit/VOC{year}")
        for split, ids in VOC[year].items():
            for image_id in ids:
                devkit.both(image_id, obj("cat"), obj("dog", difficult="1"))
            devkit.split(split, *ids)
            devkit.split(f"cat_{split}", *(f"{image_id}  1" for image_id in ids))
        devkit.split("trainval", *VOC[year]["train"], *VOC[year]["val"])


def write_coco(folder, year="2017"):
    (folder / "coco/annotations").mkdir(parents=True)
    for split, numbers in COCO.items():
        images = folder / f"coco/{split}{year}"
        images.mkdir()
        names = [f"{number:012d}.jpg" for number in numbers]
        for name in names:
            (images / name).write_bytes(jpeg())
        content = {
            "images": [
                {"id": n, "file_name": name, "height": 40, "width": 60}
                for n, name in zip(numbers, names, strict=True)
            ],
            "annotations": [
                {"id": n, "image_id": n, "category_id": 90, "bbox": [9, 9, 30, 20], "iscrowd": 0}
                for n in numbers
            ],
            "categories": [{"id": number, "name": name} for name, number in IDS.items()],
        }
        file = folder / f"coco/annotations/instances_{split}{year}.json"
        file.write_text(json.dumps(content))


def config(train, evaluation, data_dir="data"):
    fields = {"folder": "", "train": train, "eval": evaluation, "dir": str(data_dir), "cache": ""}
    return ml_collections.ConfigDict(fields)


def error_of(settings, field="train"):
    with pytest.raises(UserError) as error:
        open_split(settings, field)
    return error.value


def commands_of(text):
    """The commands of a message, each on a line of its own, as lists of words."""
    return [shlex.split(line) for line in text.splitlines() if line.startswith("  ")]


def fields_of(error):
    """The fields of the last command of a message."""
    overrides = commands_of(str(error))[-1]
    given = (w.removeprefix("--config.").partition("=") for w in overrides if "--config." in w)
    return {name: value for name, _, value in given}


def with_fields(settings, error):
    changed = settings.copy_and_resolve_references()
    for name, value in fields_of(error).items():
        changed[name.removeprefix("data.")] = value
    return changed


def run_prepare(command):
    assert command[:2] == ["scratchdet", "prepare"]
    assert exit_status(prepare.main, *command[2:]) == 0


@pytest.mark.parametrize("data_dir", ["data", "my data"])
@pytest.mark.parametrize("kind", ["voc", "voc12", "coco", "coco2014"])
def test_the_commands_of_the_message_make_what_its_fields_name(
    kind, data_dir, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    year = "2014" if kind == "coco2014" else "2017"
    write_coco(tmp_path, year) if kind.startswith("coco") else write_voc(tmp_path)
    train, evaluation, counts = {
        "voc": (VOC_TRAIN, "voc/2007:test", (6, 2)),
        "voc12": ("voc/2007:train+validation+test,voc/2012:train+validation", "", (8, 0)),
    }.get(kind, (f"coco/{year}:train", f"coco/{year}:validation", (3, 2)))
    settings = config(train, evaluation, data_dir)
    error = error_of(settings)
    *preparing, training = commands_of(str(error))
    assert len(preparing) == (1 if kind.startswith("coco") else 2)
    for command in preparing:
        run_prepare(command)

    overrides = [f"--config.{name}={value}" for name, value in fields_of(error).items()]
    assert training == ["the", "same", "command", "with", *overrides]
    changed = with_fields(settings, error)
    source = open_split(changed, "train")
    assert len(source) == counts[0]
    assert source.class_names == (NAMES if kind.startswith("coco") else VOC_CLASSES)
    if evaluation:
        assert len(open_split(changed, "eval")) == counts[1]

    # The commands may be repeated: what is prepared already stays as it is.
    again = error_of(settings)
    assert commands_of(str(again)) == [*preparing, training]
    for command in preparing:
        run_prepare(command)


def test_the_message_says_what_to_download(tmp_path):
    error = str(error_of(config(VOC_TRAIN, "voc/2007:test", tmp_path)))
    assert error.startswith(
        f"there is no data set voc/2007 or voc/2012 in {tmp_path} (it has none): download "
        "VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar from "
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/ into this folder and unpack them"
    )
    assert "`tfds build voc/2007 " in error and "`tfds build voc/2012 " in error
    error = str(error_of(config("coco/2017:train", "coco/2017:validation", tmp_path)))
    assert "train2017.zip, val2017.zip and annotations_trainval2017.zip" in error


def test_evaluation_alone_gets_only_its_own_field(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_voc(tmp_path)
    settings = config(VOC_TRAIN, "voc/2007:test[:1]")
    error = error_of(settings, "eval")
    assert fields_of(error) == {"data.eval": "voc_folder/voc2007:test[:1]"}
    run_prepare(commands_of(str(error))[0])
    assert len(open_split(with_fields(settings, error), "eval")) == 1


def test_boxes_that_are_not_published_cannot_be_prepared(tmp_path):
    for spec in ("voc/2012:test", "coco/2017:test", "coco/2014:test2015"):
        error = error_of(config(VOC_TRAIN, spec, tmp_path), "eval")
        assert "the same command" not in str(error) and f"`tfds build {spec[:6]}" in str(error)
    error = error_of(config("wider_face:train", "", tmp_path))
    assert "the same command" not in str(error)


def test_sets_of_tfds_are_kept_and_each_part_has_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_voc(tmp_path, ["2012"])
    lists = {
        split: {image_id: [("cat", (1, 1, 9, 9), False)] for image_id in ids}
        for split, ids in VOC["2007"].items()
    }
    build_voc(tmp_path / "data", tmp_path / "downloads", "2007", lists)
    settings = config(f"{VOC_TRAIN}@other place", "voc/2007:test")
    error = error_of(settings)
    assert fields_of(error) == {
        "data.train": "voc/2007:train+validation,voc_folder/voc2012:train+val@other place"
    }
    preparing, _ = commands_of(str(error))
    assert "--data_dir=other place" in preparing
    run_prepare(preparing)
    assert len(open_split(with_fields(settings, error), "train")) == 6


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("voc/2007", "train+validation", "train+val"),
        ("voc/2007", "validation[10:20]+train[:50%]", "val[10:20]+train[:50%]"),
        ("voc/2007", "test", "test"),
        ("coco", "validation", "validation"),
        ("voc/2012", "train+test", None),
        ("coco/2014", "test2015", None),
    ],
)
def test_splits_are_translated(name, split, expected):
    assert official(name).translated(split) == expected


def test_the_usual_year_of_coco():
    assert official("coco").name == "coco/2017" and official("coco/2017_panoptic") is None


TINY = [
    "--config.image_size=64",
    "--config.anchors.steps=()",
    "--config.data.canvas=(64,64)",
    "--config.model.depth=18",
    "--config.model.width=0.125",
    "--config.batch_size=2",
    "--config.num_steps=2",
    "--config.augment.crop_trials=3",
    "--config.eval.batch_size=2",
    "--workdir=run",
]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "counts"), [("voc300", (6, 2)), ("coco300", (3, 2))])
def test_a_user_copies_the_commands_and_trains(recipe, counts, tmp_path):
    write_voc(tmp_path)
    write_coco(tmp_path)

    def run(words):
        start = {"python": [sys.executable], "scratchdet": [sys.executable, "-m", "scratchdet_jax"]}
        return subprocess.run(
            [*start[words[0]], *words[1:]],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},  # one device
            capture_output=True,
            text=True,
        )

    train = ["python", "-m", "scratchdet_jax.tools.train", f"--config={recipe}", *TINY]
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    first = run(train)
    commands = commands_of(first.stderr)
    assert first.returncode == 1 and len(commands) == (3 if recipe == "voc300" else 2)
    *preparing, again = commands
    assert again[:4] == ["the", "same", "command", "with"]
    for command in [*preparing, train + again[4:]]:
        done = run(command)
        assert done.returncode == 0, done.stderr
    assert f"({counts[0]} images, {80 if recipe == 'coco300' else 20} classes)" in done.stdout
    evaluated = run(["python", "-m", "scratchdet_jax.tools.eval", "--workdir=run"])
    assert f"({counts[1]} images)" in evaluated.stdout, evaluated.stderr
