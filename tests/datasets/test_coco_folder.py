import fcntl
import io
import json
import os

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.datasets import coco_json
from scratchdet_jax.datasets.choices import Choices
from scratchdet_jax.datasets.folders import CocoSplit, prepare_coco_folder
from scratchdet_jax.datasets.objects import Kind
from scratchdet_jax.datasets.report import PrepareReport
from scratchdet_jax.errors import UserError

HEIGHT, WIDTH = 40, 60
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "traffic light"}]


def picture(suffix=".jpg", orientation=1):
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    if orientation == 1:
        return cv2.imencode(suffix, pixels)[1].tobytes()
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def box(image_id=1, bbox=(10, 5, 20, 20), category=3, number=1, **more):
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category,
        "bbox": bbox,
        "area": 99.9,
        "iscrowd": 0,
        "segmentation": [[1, 2, 3, 4, 5, 6]],
        **more,
    }


def entry(image_id=1, name=None, width=WIDTH, height=HEIGHT):
    return {
        "id": image_id,
        "file_name": name or f"{image_id}.jpg",
        "width": width,
        "height": height,
    }


class Files:
    """Annotation files beside image folders."""

    def __init__(self, path):
        self.path = path

    def image(self, name, data=None, split="train"):
        place = self.path / split / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data or picture())
        return self

    def notes(self, images, annotations, categories=CATEGORIES, split="train"):
        content = {"info": {}, "images": images, "annotations": annotations}
        (self.path / f"{split}.json").write_text(json.dumps({**content, "categories": categories}))
        return self

    def prepare(self, *splits, name="mine", **options):
        parts = [CocoSplit(s, self.path / f"{s}.json", self.path / s) for s in splits or ("train",)]
        return prepare_coco_folder(parts, self.path / "data", name, **options)

    def records(self, split="train"):
        """As stored, by image id."""
        directory = self.path / "data" / "coco_folder" / "mine" / "1.0.0"
        builder = tfds.builder_from_directory(directory)
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        return {int(record["image/id"]): record for record in source}


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def test_an_intact_set_comes_back_unchanged(files, tmp_path, capsys):
    files.image("1.jpg").image("sub/a b.png", picture(".png")).image("3.jpg", split="val")
    files.notes(
        [entry(139), entry(5, "sub/a b.png"), entry(2**40, "1.jpg")][1:],
        [
            box(5, [0, 0, 60, 40], 7, number=900, area=702.9),
            box(5, [10.5, 5, 20, 20], 3, number=4, iscrowd=1),
        ],
    )
    files.notes([entry(3)], [box(3, number=4)], split="val")
    report = files.prepare("train", "val")
    assert report.images == {"train": 2, "val": 1}
    assert report.boxless == {"train": 1, "val": 0}
    assert report.class_names == ("traffic light", "dog")
    assert report.category_ids == (3, 7)
    assert report.boxes == {"traffic light": 2, "dog": 1}
    assert report.ignored == 1
    assert report.defects == report.notes == []
    assert report.summary() in capsys.readouterr().out
    stored = (tmp_path / "data" / "coco_folder" / "mine" / "1.0.0" / "report.json").read_text()
    assert json.loads(stored)["category_ids"] == [3, 7]
    assert PrepareReport.from_json(stored) == report

    found = files.records()
    assert list(found) == [5, 2**40]  # in the order of the file
    record = found[5]
    assert bytes(record["image"]) == picture(".png")
    assert record["image/filename"] == b"sub/a b.png"
    assert record["image/orientation"] == 1
    objects = record["objects"]
    np.testing.assert_array_equal(objects["label"], [1, 0])
    np.testing.assert_array_equal(objects["id"], [900, 4])
    np.testing.assert_array_equal(objects["area"], [702, 99])
    np.testing.assert_array_equal(objects["is_crowd"], [False, True])
    expected = [[0, 0, 1, 1], [5 / 40, 10.5 / 60, 25 / 40, 30.5 / 60]]
    np.testing.assert_allclose(objects["bbox"], expected, rtol=1e-6)

    source = DetectionSource("coco_folder/mine:train", tmp_path / "data")
    assert source.class_names == ("traffic light", "dog")
    assert source[0]["image_id"] == "5"
    np.testing.assert_array_equal(source[0]["labels"], [2, 1])
    np.testing.assert_array_equal(source[0]["ignore"], [False, True])


def test_cocos_90_ids_become_80_labels(files):
    unused = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    categories = [{"id": i, "name": f"c{i}"} for i in range(1, 91) if i not in unused]
    files.image("1.jpg").notes([entry()], [box(category=90)], categories[::-1])
    report = files.prepare()
    assert report.category_ids == tuple(c["id"] for c in categories)
    assert files.records()[1]["objects"]["label"] == [79]
    assert report.boxes["c90"] == 1 and report.boxes["c1"] == 0


# (function that makes a set whose image 2 is intact and whose image 1 is not, kind of the
#  defect, words of the reason, boxes left in image 1 or None if it is left out)
DEFECTS = {
    "negative width": (
        lambda f: f.notes([entry(), entry(2)], [box(bbox=[30, 5, -20, 20]), box(2, number=2)]),
        Kind.SWAPPED,
        "annotations[0] (image 1): x 30, y 5, w -20",
        1,
    ),
    "reaching out": (
        lambda f: f.notes([entry(), entry(2)], [box(bbox=[50, 5, 20, 20]), box(2, number=2)]),
        Kind.CLIPPED,
        "w 20, h 20 of 60×40",
        1,
    ),
    "reaching out by a rounding error": (
        lambda f: f.notes([entry(), entry(2)], [box(bbox=[50.01, 5, 10, 20]), box(2, number=2)]),
        None,
        "",
        1,
    ),
    "no width": (
        lambda f: f.notes([entry(), entry(2)], [box(bbox=[5, 5, 0, 20]), box(2, number=2)]),
        Kind.NO_AREA,
        "w 0",
        0,
    ),
    "outside": (
        lambda f: f.notes([entry(), entry(2)], [box(bbox=[1e308, 5, 1e308, 2]), box(2, number=2)]),
        Kind.OUTSIDE,
        "1e+308",
        0,
    ),
    "unknown category": (
        lambda f: f.notes([entry(), entry(2)], [box(category=4), box(2, number=2)]),
        Kind.UNKNOWN_CLASS,
        "category 4",
        0,
    ),
    "unknown image": (
        lambda f: f.notes([entry(), entry(2)], [box(9), box(2, number=2)]),
        Kind.UNKNOWN_IMAGE,
        "annotations[0]: image 9",
        0,
    ),
    "annotation of a list": (
        lambda f: f.notes([entry(), entry(2)], [box([1]), box(2, number=2)]),
        Kind.UNKNOWN_IMAGE,
        "annotations[0]: image [1]",
        0,
    ),
    "annotation that is none": (
        lambda f: f.notes([entry(), entry(2)], ["box", box(2, number=2)]),
        Kind.UNREADABLE_BOX,
        "annotations[0] is not an object",
        0,
    ),
    "no annotation id": (
        lambda f: f.notes([entry(), entry(2)], [box(number=None), box(2, number=2)]),
        Kind.ANNOTATION_ID,
        "its id is None, now 3",
        1,
    ),
    "annotation id twice": (
        lambda f: f.notes([entry(), entry(2)], [box(number=2), box(2, number=2)]),
        Kind.ANNOTATION_ID,
        "its id is 2, now 3",
        1,
    ),
    "area": (
        lambda f: f.notes([entry(), entry(2)], [box(area="big"), box(2, number=2)]),
        Kind.AREA,
        "its area is 'big'",
        1,
    ),
    "crowd": (
        lambda f: f.notes([entry(), entry(2)], [box(iscrowd=[1]), box(2, number=2)]),
        Kind.FLAG,
        "iscrowd is [1]",
        1,
    ),
    "size": (
        lambda f: f.notes([entry(width=61), entry(2)], [box(), box(2, number=2)]),
        Kind.SIZE,
        "it says 61×40 pixels, the image has 60×40",
        1,
    ),
    "ending": (
        lambda f: f.notes([entry(name="1.JPG"), entry(2)], [box(), box(2, number=2)]),
        Kind.RENAMED,
        "1.JPG: found as 1.jpg",
        1,
    ),
    "backslashes": (
        lambda f: f.image("sub/x.jpg").notes(
            [entry(name="sub\\x.jpg"), entry(2)], [box(), box(2, number=2)]
        ),
        Kind.RENAMED,
        "found as sub/x.jpg",
        1,
    ),
    "missing": (
        lambda f: f.notes([entry(name="x/1.jpg"), entry(2)], [box(), box(2, number=2)]),
        Kind.NO_IMAGE,
        "but 1.jpg is there without the leading folders",
        None,
    ),
    "in another folder": (
        lambda f: f.image("below/3.jpg").notes(
            [entry(name="3.jpg"), entry(2)], [box(), box(2, number=2)]
        ),
        Kind.NO_IMAGE,
        "image 1, 3.jpg: not in ",
        None,
    ),
    "broken": (
        lambda f: f.image("1.jpg", picture()[:-99]).notes(
            [entry(), entry(2)], [box(), box(2, number=2)]
        ),
        Kind.BROKEN_IMAGE,
        "image 1, 1.jpg: ",
        None,
    ),
    "path upwards": (
        lambda f: f.notes([entry(name="../1.jpg"), entry(2)], [box(), box(2, number=2)]),
        Kind.OUT_OF_FOLDER,
        "image 1, ../1.jpg: it is not a path inside the folder",
        None,
    ),
    "path upwards and down again": (
        lambda f: f.notes([entry(name="../train/1.jpg"), entry(2)], [box(), box(2, number=2)]),
        Kind.OUT_OF_FOLDER,
        "image 1",
        None,
    ),
    "absolute path": (
        lambda f: f.notes(
            [entry(name=str(f.path / "train/1.jpg")), entry(2)], [box(), box(2, number=2)]
        ),
        Kind.OUT_OF_FOLDER,
        "image 1",
        None,
    ),
    "Windows path": (
        lambda f: f.notes([entry(name="C:\\train\\1.jpg"), entry(2)], [box(), box(2, number=2)]),
        Kind.OUT_OF_FOLDER,
        "image 1",
        None,
    ),
    "no id": (
        lambda f: f.notes([{"file_name": "1.jpg"}, entry(2)], [box(2, number=2)]),
        Kind.BROKEN_ENTRY,
        "images[0] has the id None",
        None,
    ),
    "text id": (
        lambda f: f.notes([entry("one", "1.jpg"), entry(2)], [box(2, number=2)]),
        Kind.BROKEN_ENTRY,
        "images[0] has the id 'one'; ids must be integers",
        None,
    ),
    "huge id": (
        lambda f: f.notes([entry(2**63, "1.jpg"), entry(2)], [box(2, number=2)]),
        Kind.BROKEN_ENTRY,
        "ids must be integers",
        None,
    ),
    "no file name": (
        lambda f: f.notes([{"id": 1, "file_name": None}, entry(2)], [box(2, number=2)]),
        Kind.BROKEN_ENTRY,
        "images[0] (id 1) has no file_name",
        None,
    ),
    "twice": (
        lambda f: f.notes([entry(), entry(2), entry()], [box(), box(2, number=2)]),
        Kind.LISTED_TWICE,
        "image 1 is listed 2 times",
        1,
    ),
    "one id for two files": (
        lambda f: f.notes([entry(), entry(2), entry(1, "2.jpg")], [box(), box(2, number=2)]),
        Kind.CONFLICT,
        "image 1: 1.jpg, 2.jpg",
        None,
    ),
    "one file for two ids": (
        lambda f: f.notes([entry(), entry(2, "1.jpg")], [box(), box(2, number=2)]),
        Kind.SHARED,
        "1.jpg: ids 1, 2",
        1,
    ),
}

BOXES = {
    "three numbers": [1, 2, 3],
    "nothing": None,
    "text": "1 2 3 4",
    "texts": ["1", "2", "3", "4"],
    "not a number": [1, 2, float("nan"), 4],
    "infinite": [1, 2, float("inf"), 4],
    "true": [True, 2, 3, 4],
    "huge": [1, 2, 10**400, 4],
    "nested": [[1, 2, 3, 4]],
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_named_and_the_rest_is_used(name, files, capsys):
    spoil, kind, words, left = DEFECTS[name]
    files.image("1.jpg").image("2.jpg")
    spoil(files)
    report = files.prepare()
    assert report.counts() == ({kind: 1} if kind else {})
    if kind:
        assert report.defects[0].file == "train.json"
        assert words in report.defects[0].reason
        assert report.defects[0].reason in capsys.readouterr().out
    found = files.records()
    assert len(found[2]["objects"]["bbox"]) == 1
    if left is None:
        assert set(found) == {2}
        assert report.left_out["train"] == (2 if kind == Kind.CONFLICT else 1)
    else:
        assert len(found[1]["objects"]["bbox"]) == left
        assert report.left_out == {"train": 0}


@pytest.mark.parametrize("name", BOXES)
def test_an_invalid_box_is_left_out(name, files):
    files.image("1.jpg").notes([entry()], [box(bbox=BOXES[name]), box(number=2)])
    (defect,) = files.prepare().defects
    assert defect.kind == Kind.UNREADABLE_BOX
    assert "not four finite numbers" in defect.reason
    assert len(files.records()[1]["objects"]["bbox"]) == 1


def test_boxes_refer_to_the_image_as_displayed(files):
    turned = picture(orientation=6)  # stored 60×40, shown 40×60
    files.image("1.jpg", turned).image("2.jpg", turned)
    files.notes(
        [entry(1, width=HEIGHT, height=WIDTH), entry(2)],
        [box(1, [10, 6, 26, 18]), box(2, [6, 4, 18, 26], number=2)],
    )
    report = files.prepare()
    assert report.counts() == {Kind.TURNED: 1}
    assert "image 2, 2.jpg" in report.defects[0].reason
    for record in files.records().values():
        assert record["image/orientation"] == 6
        assert bytes(record["image"]) == turned
        np.testing.assert_allclose(
            record["objects"]["bbox"], [[6 / 60, 10 / 40, 24 / 60, 36 / 40]], rtol=1e-6
        )


def test_links_out_of_the_folder_are_refused_but_the_folder_may_be_a_link(files, tmp_path):
    (tmp_path / "secret.jpg").write_bytes(picture())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "3.jpg").write_bytes(picture())
    files.image("1.jpg")
    (tmp_path / "train" / "2.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "train" / "sub").symlink_to(tmp_path / "elsewhere")
    files.notes([entry(), entry(2), entry(3, "sub/3.jpg"), entry(4, "sub/3.JPG")], [box()])
    (tmp_path / "train").rename(tmp_path / "pictures")
    (tmp_path / "train").symlink_to(tmp_path / "pictures")
    report = files.prepare()
    assert report.counts() == {Kind.OUT_OF_FOLDER: 2, Kind.NO_IMAGE: 1}
    assert set(files.records()) == {1}


def test_the_categories_of_splits_must_not_contradict_each_other(files):
    files.image("1.jpg").notes([entry()], [box()])
    files.image("1.jpg", split="val")
    other = [CATEGORIES[0], {"id": 3, "name": "lamp"}]
    files.notes([entry()], [box()], other, split="val")
    with pytest.raises(UserError, match=r"train\.json and .*val\.json: id 3, named 'traffic li"):
        files.prepare("train", "val")
    files.notes([entry()], [box(category=8)], [{"id": 8, "name": "dog"}], split="val")
    files.notes([entry()], [box(category=7)])
    with pytest.raises(UserError, match=r"id 8, named 'dog' like id 7, and annotations use it"):
        files.prepare("train", "val")


def test_a_category_that_only_one_file_lists_is_no_contradiction(files):
    files.image("1.jpg").notes([entry()], [box(category=7)], CATEGORIES[:1])
    files.image("1.jpg", split="val").notes([entry()], [box()], CATEGORIES[1:], split="val")
    report = files.prepare("train", "val")
    assert report.category_ids == (3, 7)
    assert report.boxes == {"traffic light": 1, "dog": 1}
    assert report.notes == report.defects == []


ROBOFLOW = [{"id": 0, "name": "cells", "supercategory": "none"}, {"id": 1, "name": "cells"}]


def test_an_unused_category_with_the_name_of_another_is_left_out(files):
    """Roboflow lists the project as category 0, which no annotation uses."""
    files.image("1.jpg").notes([entry()], [box(category=1)], ROBOFLOW)
    files.image("1.jpg", split="val").notes([entry()], [], ROBOFLOW, split="val")
    report = files.prepare("train", "val")
    assert report.class_names == ("cells",)
    assert report.category_ids == (1,)
    assert report.notes == [
        "category left out, because no annotation uses it: id 0, named 'cells' like id 1"
    ]
    assert report.defects == []


@pytest.mark.parametrize(
    ("entry_", "words"),
    [
        ({"id": 9}, "train.json: id 9, without a name"),
        ({"id": 9, "name": [1]}, "without a name"),
        ({"id": 9, "name": " \n"}, "without a name"),
        ({"id": 9, "name": "traffic\nlight"}, "id 9, named 'traffic light' like id 3"),
    ],
)
def test_an_unusable_category_stands_in_the_way_only_if_it_is_used(entry_, words, files):
    files.image("1.jpg").notes([entry()], [box()], [CATEGORIES[1], entry_])
    report = files.prepare()
    assert report.class_names == ("traffic light",)
    assert words in report.notes[0]
    files.notes([entry()], [box(), box(category=9, number=2)], [CATEGORIES[1], entry_])
    with pytest.raises(UserError, match=r"train\.json.* must have its own id and name"):
        files.prepare(force=True)


def test_an_unused_category_of_its_own_name_remains_a_class(files):
    files.image("1.jpg").notes([entry()], [box()], [{"id": 0, "name": "things"}, *CATEGORIES])
    report = files.prepare()
    assert report.class_names == ("things", "traffic light", "dog")
    assert report.boxes == {"things": 0, "traffic light": 1, "dog": 0}
    report = files.prepare(choices=Choices(classes=("dog", "traffic light")), force=True)
    assert report.class_names == ("dog", "traffic light")
    assert report.category_ids == (7, 3)


@pytest.mark.parametrize(("name", "text"), [(7, "7"), (1.5, "1.5"), (None, "null")])
def test_names_that_are_numbers_or_null_are_read_as_text(name, text, files):
    files.image("1.jpg").notes([entry()], [box()], [{"id": 3, "name": name}])
    report = files.prepare()
    assert report.class_names == (text,)
    assert report.counts() == {Kind.CATEGORY_NAME: 1}
    assert f"its name is {text}, read as '{text}'" in report.defects[0].reason
    with pytest.raises(UserError, match="--strict"):
        files.prepare(strict=True)
    files.notes(
        [entry()],
        [box(), box(category=4, number=2)],
        [{"id": 3, "name": name}, {"id": 4, "name": text}],
    )
    with pytest.raises(UserError, match="must have its own id and name"):
        files.prepare(force=True)


def test_wrong_splits_and_names_are_errors(files, tmp_path):
    files.image("1.jpg").notes([entry()], [box()])
    with pytest.raises(UserError, match="no split is given"):
        prepare_coco_folder([], tmp_path / "data", "mine")
    with pytest.raises(UserError, match="two splits are named 'train'"):
        files.prepare("train", "train")
    with pytest.raises(UserError, match=r"image folder .* does not exist"):
        files.prepare("val")
    (tmp_path / "all").mkdir()
    with pytest.raises(UserError, match="cannot name a split"):
        files.prepare("all")
    with pytest.raises(UserError, match="cannot name a data set"):
        files.prepare(name="../x")


def test_nothing_usable_is_an_error_with_the_reasons(files, tmp_path):
    files.image("1.jpg").notes([entry("a"), entry("b")], [])
    with pytest.raises(UserError, match=r"no usable image: 2 × image entry .*number the images"):
        files.prepare()
    files.notes([entry()], [])
    with pytest.raises(UserError, match="no usable box"):
        files.prepare()
    assert not (tmp_path / "data" / "coco_folder").exists()


def test_a_test_set_has_images_and_no_boxes(files, tmp_path, capsys):
    """As COCO's image_info_test-dev2017.json: no list of annotations."""
    files.image("1.jpg").image("2.jpg")
    content = {"images": [entry(), entry(2)], "categories": CATEGORIES}
    (tmp_path / "train.json").write_text(json.dumps(content))
    report = files.prepare()
    assert report.images == {"train": 2} and not sum(report.boxes.values())
    assert report.class_names == ("traffic light", "dog")
    (note,) = report.notes
    assert "train.json has no annotations" in note and "neither trained on nor scored" in note
    source = DetectionSource("coco_folder/mine:train", str(tmp_path / "data"))
    with pytest.raises(UserError, match="none of 2 images has a box"):
        source.require_boxes("config.data.train")


def test_an_empty_split_is_left_out(files):
    files.image("1.jpg").notes([entry()], [box()])
    files.image("1.jpg", split="val").notes([], [], split="val")
    report = files.prepare("train", "val")
    assert report.counts() == {Kind.EMPTY_SPLIT: 1}
    assert report.images == {"train": 1}
    assert report.left_out == {"train": 0, "val": 0}


def test_prepared_once_while_nothing_changes(files, capsys):
    files.image("1.jpg").notes([entry()], [box()])
    report = files.prepare()
    assert files.prepare(strict=True) == report
    assert "already prepared" in capsys.readouterr().out
    files.image("1.jpg", picture() + b"\0")
    with pytest.raises(UserError, match="delete that directory"):
        files.prepare()


def test_strict_writes_nothing(files, tmp_path, capsys):
    files.image("1.jpg").notes([entry()], [box(), box(9)])
    with pytest.raises(UserError, match="nothing was written"):
        files.prepare(strict=True)
    assert "1 × annotation of an image that is not listed" in capsys.readouterr().out
    assert not (tmp_path / "data" / "coco_folder").exists()


JSONS = {
    "nothing": (b"", "cannot be read"),
    "cut short": (b'{"images": [', "cannot be read"),
    "a number": (b"3", "not a COCO annotation file"),
    "a list": (b"[]", "not a COCO annotation file"),
    "neither annotations nor images": (b'{"categories": []}', "not a COCO annotation file"),
    "annotations of another type": (
        b'{"images": [], "annotations": null, "categories": []}',
        "not a COCO annotation file",
    ),
    "other types": (b'{"images": {}, "annotations": [], "categories": []}', "not a COCO"),
    "nested": (b"[" * 200_000, "recursion depth exceeded"),
    "nested objects": (b'{"a":' * 200_000, "recursion depth exceeded"),
    "bytes": (b"\xff\xfe\xff\xfe\x00", "cannot be read"),
    "long number": (b'{"images": [' + b"9" * 5000 + b"]}", "cannot be read"),
}


@pytest.mark.parametrize("name", JSONS)
def test_an_invalid_annotation_file_is_reported_in_one_line(name, files, tmp_path):
    data, words = JSONS[name]
    files.image("1.jpg")
    (tmp_path / "train.json").write_bytes(data)
    with pytest.raises(UserError, match=words) as error:
        files.prepare()
    assert "\n" not in str(error.value)
    assert "train.json" in str(error.value)


@pytest.mark.parametrize(
    "categories",
    [
        [],
        [{"id": 3}],
        [{"id": "3", "name": "a"}],
        [{"id": 3, "name": {}}],
        [{"id": 3, "name": True}],
        ["a"],
        [{"id": 3, "name": " \n"}],
        [{"id": 3, "name": "\ud800"}],
        [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}],
        [{"id": 3, "name": "a b"}, {"id": 4, "name": "a\nb"}],
        [{"id": True, "name": "a"}],
    ],
)
def test_invalid_categories_are_errors(categories, files):
    annotations = [box(), box(number=2, category=4), box(number=3, category="3")]
    files.image("1.jpg").notes([entry()], annotations, categories)
    with pytest.raises(
        UserError, match=r"train\.json(:| has).* (categor|ids? |'name'|names )"
    ) as error:
        files.prepare()
    assert "no usable" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_in_other_encodings(encoding, files, tmp_path):
    files.image("é.jpg").notes([entry(name="é.jpg")], [box()])
    text = json.dumps(json.loads((tmp_path / "train.json").read_text()), ensure_ascii=False)
    (tmp_path / "train.json").write_text(text, encoding)
    assert files.prepare().defects == []


def test_file_names_in_other_spellings(files, tmp_path):
    files.image("1.jpg").notes(
        [
            entry(1),
            entry(2, "e\u0301.jpg"),
            entry(3, "ü.jpg"),
            entry(4, "\ud83d.jpg"),
            entry(5, "nul\0.jpg"),
            entry(6, "n" * 400 + ".jpg"),
            entry(7, "\x1b[31m\n.jpg"),
        ],
        [box()],
    )
    files.image("é.jpg")
    with open(os.fsencode(tmp_path / "train") + b"/\xfc.jpg", "wb") as file:
        file.write(picture())
    report = files.prepare()
    assert report.counts() == {Kind.RENAMED: 2, Kind.NO_IMAGE: 4}
    assert set(files.records()) == {1, 2, 3}
    assert "\x1b" not in report.summary()
    assert all("\n" not in defect.reason for defect in report.defects)


def test_segmentations_are_dropped_while_reading(files, tmp_path):
    files.notes([entry()], [box()])
    read = coco_json.read_coco(tmp_path / "train.json")
    assert set(read.annotations[0]) == set(box()) - {"segmentation"}


def test_memory_is_bounded_by_a_stated_size(files, tmp_path, monkeypatch):
    files.image("1.jpg").notes([entry()], [box()])
    monkeypatch.setattr(coco_json, "MAX_JSON_BYTES", 1 << 20)
    os.truncate(tmp_path / "train.json", (1 << 20) + 1)
    with pytest.raises(UserError, match="at most 1 MiB are read"):
        files.prepare()
    os.remove(tmp_path / "train.json")
    os.mkfifo(tmp_path / "train.json")
    with pytest.raises(UserError, match="it is not a file"):
        files.prepare()


def test_two_processes_may_write_at_once(files, tmp_path):
    files.image("1.jpg").notes([entry()], [box()])
    place = tmp_path / "data" / "coco_folder" / "mine"
    place.mkdir(parents=True)
    handle = os.open(place, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    assert files.prepare().images == {"train": 1}
    os.close(handle)
