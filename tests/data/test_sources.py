import json

import ml_collections
import pytest

from scratchdet_jax.config import defaults
from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.data.sources import chosen_on_test, open_split
from scratchdet_jax.datasets.choices import Choices
from scratchdet_jax.datasets.folders import (
    CocoSplit,
    prepare_coco_folder,
    prepare_voc_folder,
    prepare_yolo_folder,
)
from scratchdet_jax.errors import UserError
from scratchdet_jax.tools import prepare
from tests.command import exit_status
from tests.data.voc_layout import Folder, jpeg

COUNT = 10


@pytest.fixture
def folder(tmp_path):
    folder = Folder(tmp_path / "My photos")
    for n in range(COUNT):
        folder.both(f"p{n}").image(f"p{n}", jpeg(seed=n))
    return folder


def config(folder="", train="train", evaluation="val", data_dir=""):
    fields = {
        "folder": str(folder),
        "train": train,
        "eval": evaluation,
        "dir": str(data_dir),
        "cache": "",
    }
    return ml_collections.ConfigDict(fields)


def command_of(error):
    """The arguments of the command that an error message proposes."""
    import shlex

    text = str(error.value).partition("`")[2].partition("`")[0]
    words = shlex.split(text)
    assert words[:2] == ["scratchdet", "prepare"]
    return words[2:]


def test_a_folder_without_lists_trains_and_says_how_to_evaluate(folder, tmp_path):
    settings = config(folder.path, data_dir=tmp_path / "my data")
    assert len(open_split(settings, "train")) == COUNT
    with pytest.raises(UserError, match=r"config\.data\.eval: .*has no split 'val'") as error:
        open_split(settings, "eval")
    assert "it has train (10 images)" in str(error.value)
    assert str(error.value).endswith("train without evaluation, with --config.data.eval=")
    assert "\n" not in str(error.value)
    assert exit_status(prepare.main, *command_of(error)) == 0  # the command does what it promises
    assert len(open_split(settings, "eval")) == 2
    assert len(open_split(settings, "train")) == COUNT - 2


def test_a_missing_training_split_is_no_reason_not_to_evaluate(folder, tmp_path):
    with pytest.raises(UserError, match=r"config\.data\.train: ") as error:
        open_split(config(folder.path, train="trian", data_dir=tmp_path), "train")
    assert "--config.data.eval=" not in str(error.value)


def test_sets_with_several_splits_get_no_advice_to_divide(folder, tmp_path):
    folder.split("train", "p0", "p1").split("test", "p2")
    with pytest.raises(UserError, match=r"it has test \(1 image\), train \(2 images\)$"):
        open_split(config(folder.path, data_dir=tmp_path), "eval")


def test_a_prepared_set_of_one_split(folder, tmp_path):
    prepare_voc_folder(folder.path, tmp_path / "data", "mine")
    settings = config(evaluation="voc_folder/mine:val", data_dir=tmp_path / "data")
    with pytest.raises(UserError, match=r"prepare voc … --name=mine .* --val=0\.2 --force`"):
        open_split(settings, "eval")


def prepared(kind, folder, tmp_path):
    """A set of each kind of builder, with the same ten images."""
    data = tmp_path / "data"
    images = folder.path / "JPEGImages"
    names = [f"p{n}" for n in range(COUNT)]
    if kind == "voc_folder":
        folder.split("train", *names)
        prepare_voc_folder(folder.path, data, "mine")
    elif kind == "coco_folder":
        content = {
            "images": [{"id": n, "file_name": f"p{n}.jpg"} for n in range(COUNT)],
            "annotations": [
                {"id": n, "image_id": n, "category_id": 1, "bbox": [1, 2, 9, 9]}
                for n in range(COUNT)
            ],
            "categories": [{"id": 1, "name": "cell"}],
        }
        (tmp_path / "a.json").write_text(json.dumps(content))
        prepare_coco_folder([CocoSplit("train", tmp_path / "a.json", images)], data, "mine")
    else:
        for name in names:
            (images / f"{name}.txt").write_text("0 0.5 0.5 0.1 0.1")
        (folder.path / "data.yaml").write_text("train: JPEGImages\nnames: [cell]")
        prepare_yolo_folder(folder.path / "data.yaml", data, "mine")
    return data


@pytest.mark.parametrize("kind", ["voc_folder", "coco_folder", "yolo_folder"])
def test_subsets_are_those_of_a_list(kind, folder, tmp_path):
    data = prepared(kind, folder, tmp_path)

    def members(split):
        source = DetectionSource(f"{kind}/mine:{split}", data)
        return [source[i]["filename"].rpartition("/")[2] for i in range(len(source))]

    everything = [f"p{n}.jpg" for n in range(COUNT)]
    assert members("train") == everything
    assert members("train[:80%]") == everything[:8]
    assert members("train[80%:]") == everything[8:]
    assert members("train[2:5]") == everything[2:5]
    assert members("train[-3:]") == everything[-3:]
    assert members("train[:2]+train[7:]") == everything[:2] + everything[7:]
    with pytest.raises(UserError, match="a slice ends before it starts"):
        members("train[5:2]")
    with pytest.raises(UserError, match="has no split"):
        members("train[:x]")
    settings = config(
        train=f"{kind}/mine:train[:80%]", evaluation=f"{kind}/mine:train[80%:]", data_dir=data
    )
    assert len(open_split(settings, "train")) == 8
    assert len(open_split(settings, "eval")) == 2


def test_subsets_of_a_folder_need_no_name(folder, tmp_path):
    settings = config(folder.path, "train[:80%]", "train[80%:]", tmp_path / "data")
    assert len(open_split(settings, "train")) == 8
    assert len(open_split(settings, "eval")) == 2


def test_a_folder_prepared_with_choices_is_used_as_prepared(folder, tmp_path):
    name = "my_photos"  # as the folder's
    choices = Choices(rename=(("cell", "blob"),), val=0.3, seed=4)
    prepare_voc_folder(folder.path, tmp_path, name, choices=choices)
    settings = config(folder.path, data_dir=tmp_path)
    assert open_split(settings, "train").class_names == ("blob",)
    assert len(open_split(settings, "eval")) == 3
    folder.both("more")
    with pytest.raises(UserError, match="the files, classes or splits differ"):
        open_split(settings, "train")


def test_empty_fields_and_names_without_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"config\.data\.eval is '': name a data set and split"):
        open_split(config(evaluation="", data_dir=tmp_path), "eval")
    for split in ("val", "train[:80%]"):
        with pytest.raises(UserError, match=r"that config\.data\.folder names"):
            open_split(config(evaluation=split, data_dir=tmp_path), "eval")


@pytest.mark.parametrize(
    ("spec", "fields", "warns"),
    [
        ("voc/2007:test", {}, True),
        ("voc/2007:validation,voc/2007:test@/data/test", {}, True),
        ("voc/2007:validation@/data/old,voc/2007:test", {}, True),
        ("test[:50%]", {}, True),
        ("voc/2007:validation+test[:50%]", {}, True),
        ("test", {}, True),  # of a user's folder
        ("voc/2007:validation", {}, False),
        ("testcards:val@/data/test", {}, False),
        ("cards:val@/data/a:test,cards:val@/data/test", {}, False),
        ("voc/2007:test", {"every_steps": 0}, False),  # only the last checkpoint is scored
        ("voc/2007:test", {"metric": "none"}, False),
        ("", {}, False),
    ],
)
def test_a_best_checkpoint_that_a_test_split_chooses_is_said(spec, fields, warns):
    settings = defaults.get_config()
    settings.data.eval = spec
    settings.eval.update(fields)
    warning = chosen_on_test(settings)
    assert ("--checkpoint=latest" in warning) == warns == bool(warning)
