"""Facts of the data and the config that are reported before the first update."""

import json

import pytest

from scratchdet_jax.data import sources
from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.datasets.folders import prepare_voc_folder
from scratchdet_jax.datasets.report import PrepareReport
from scratchdet_jax.errors import UserError
from scratchdet_jax.training import loop
from tests.data.voc_layout import Folder, obj
from tests.tiny import tiny_config

CROWD = [obj(box=(1 + n % 50, 1 + n // 50, 9 + n % 50, 9 + n // 50)) for n in range(101)]


@pytest.fixture
def data(tmp_path):
    """The data dir of voc_folder/mine: the image b of the split val has 101 boxes."""
    folder = Folder(tmp_path / "mine")
    for name in "abcd":
        folder.both(name, *(CROWD if name == "b" else [obj()]))
    folder.split("train", "a", "c", "d").split("val", "b")
    prepare_voc_folder(folder.path, tmp_path / "data", "mine")
    return tmp_path / "data"


def config(data, **overrides):
    fields = {
        "data.dir": str(data),
        "data.train": "voc_folder/mine:train",
        "data.eval": "voc_folder/mine:val",
        "data.max_boxes": 100,
    }
    return tiny_config(**fields | overrides)


def edit_report(data, **changes):
    (path,) = data.rglob("report.json")
    fields = json.loads(path.read_text())
    for name, value in changes.items():
        if value is None:
            del fields[name]
        else:
            fields[name] = value
    path.write_text(json.dumps(fields))
    return path


def test_preparing_reports_a_crowd_and_the_report_has_the_number(data, tmp_path, capsys):
    folder = tmp_path / "mine"
    report = prepare_voc_folder(folder, tmp_path / "again", "mine")
    assert report.most_boxes == 101
    line = "an image has 101 boxes: train with --config.data.max_boxes=101 or more"
    assert report.summary().count(line) == capsys.readouterr().out.count(line) == 1
    path = edit_report(data, most_boxes=None)  # as earlier reports are
    assert PrepareReport.from_json(path.read_text()).most_boxes == 0


@pytest.mark.parametrize("reported", [101, None, "nonsense"])
@pytest.mark.parametrize("crowded", ["train", "eval"])
def test_a_crowded_image_is_reported_before_training(data, crowded, reported, tmp_path):
    edit_report(data, most_boxes=reported)
    other = {"train": "eval", "eval": "train"}[crowded]
    splits = {f"data.{crowded}": "voc_folder/mine:val", f"data.{other}": "voc_folder/mine:train"}
    with pytest.raises(UserError) as error:
        loop.train_and_evaluate(config(data, **splits), tmp_path / "run")
    assert str(error.value) == (
        f"b.jpg of config.data.{crowded} voc_folder/mine:val has 101 boxes, more than "
        "config.data.max_boxes = 100: set it to 101 or more"
    )


def test_enough_slots_and_a_slice_without_the_crowd_are_accepted(data):
    _, crowded = sources.open_splits(config(data, **{"data.max_boxes": 101}))
    assert crowded.most_boxes(100) == (101, "b.jpg")
    _, part = sources.open_splits(config(data, **{"data.eval": "voc_folder/mine:train[:1]"}))
    assert len(part) == 1


def test_only_parts_that_may_be_crowded_are_read(data, monkeypatch):
    source = DetectionSource("voc_folder/mine:train,voc_folder/mine:val", data)
    assert source.most_boxes(100) == (101, "b.jpg")
    assert source.most_boxes(3) == (101, "b.jpg")
    monkeypatch.setattr(type(source), "__getitem__", None)
    monkeypatch.setattr(type(source._parts[0]), "read", None)
    assert source.most_boxes(101) == (0, "")


def test_a_batch_above_the_size_of_the_split(data, tmp_path):
    fields = {"data.max_boxes": 101, "batch_size": 16}
    with pytest.raises(UserError) as error:
        loop.train_and_evaluate(config(data, **fields), tmp_path / "run")
    assert str(error.value) == (
        "config.batch_size is 16, but config.data.train voc_folder/mine:train has only 3 images: "
        "it needs at least 8 images"
    )
    source = DetectionSource("voc_folder/mine:train", data)
    with pytest.raises(UserError, match="has only 3 images: use at most 2"):
        sources.check_batch_size(config(data, **fields), source, devices=2)
    sources.check_batch_size(config(data, batch_size=3), source, devices=1)
