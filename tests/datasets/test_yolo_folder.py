import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.datasets.choices import Choices
from scratchdet_jax.datasets.folders import prepare_yolo_folder
from scratchdet_jax.datasets.objects import Kind
from scratchdet_jax.datasets.yolo_scan import label_path, parse_line
from scratchdet_jax.errors import UserError
from tests.data.voc_layout import HEIGHT, WIDTH, jpeg, with_exif

BOX = "0 0.5 0.5 0.2 0.4"
INTACT = [[0.3, 0.4, 0.7, 0.6]]


class Files:
    """A YOLO data set, file by file."""

    def __init__(self, path):
        self.path = path
        path.mkdir()

    def write(self, name, content):
        place = self.path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
        return self

    def image(self, name, data=None):
        return self.write(name, data or jpeg())

    def both(self, stem, *lines, split="train"):
        text = "".join(line + "\n" for line in lines or (BOX,))
        self.image(f"images/{split}/{stem}.jpg")
        return self.write(f"labels/{split}/{stem}.txt", text)

    def data(self, **fields):
        content = {"train": "images/train", "names": ["dog", "cat"], **fields}
        given = {key: value for key, value in content.items() if value is not None}
        return self.write("data.yaml", json.dumps(given))  # JSON is YAML

    def prepare(self, **options):
        place = self.path.parent / "data"
        return prepare_yolo_folder(self.path / "data.yaml", place, "mine", **options)

    def examples(self, split="train"):
        source = DetectionSource(f"yolo_folder/mine:{split}", self.path.parent / "data")
        return {e["image_id"]: e for e in (source[i] for i in range(len(source)))}


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path / "Set")


def test_an_intact_set_comes_back_unchanged(files, tmp_path, capsys):
    files.both("b", BOX, "1 0.25 0.5 0.5 1").both("a", split="val").both("a", "1 0.5 0.5 1 1")
    files.data(val="images/val", nc=2)
    report = files.prepare()
    assert report.images == {"train": 2, "val": 1}
    assert report.class_names == ("dog", "cat")
    assert report.category_ids == (0, 1)
    assert report.boxes == {"dog": 2, "cat": 2}
    assert report.defects == report.notes == []
    printed = capsys.readouterr().out
    assert report.summary() in printed
    assert "4 boxes of 2 classes: dog 2, cat 2" in printed
    found = files.examples()
    assert list(found) == ["images/train/a", "images/train/b"]
    example = found["images/train/b"]
    assert example["image"] == jpeg()
    assert example["filename"] == "images/train/b.jpg"
    np.testing.assert_allclose(example["boxes"], [*INTACT, [0, 0, 1, 0.5]], atol=1e-7)
    assert example["labels"].tolist() == [1, 2]
    assert not example["ignore"].any()
    source = DetectionSource("yolo_folder/mine:train+val", tmp_path / "data")
    assert source.category_ids == (0, 1)
    assert len(DetectionSource("yolo_folder/mine:train[:50%]", tmp_path / "data")) == 1
    assert len(DetectionSource("yolo_folder/mine:train[1:2]+val", tmp_path / "data")) == 2


def test_an_image_without_labels_has_no_objects_and_is_counted(files):
    files.both("a").both("empty", "").image("images/train/none.jpg").data()
    report = files.prepare()
    assert report.images == {"train": 3}
    assert report.boxless == {"train": 2}
    (note,) = [n for n in report.notes if "label file" in n]
    assert note.startswith("train: 1 image of 3 without a label file")
    assert "images/train/none.jpg: there is no labels/train/none.txt" in note
    assert {k: len(e["labels"]) for k, e in files.examples().items()} == {
        "images/train/a": 1,
        "images/train/empty": 0,
        "images/train/none": 0,
    }


def test_labels_that_are_not_where_they_should_be_are_not_taken_for_absence(files):
    files.image("images/train/a.jpg").write("annotations/a.txt", BOX).data()
    with pytest.raises(UserError, match=r"none of 1 image .*a\.jpg would be labels/train/a\.txt"):
        files.prepare()


def test_polygons_become_their_boxes(files):
    files.both(
        "a",
        "0 0.1 0.2 0.5 0.3 0.4 0.8",
        "1 0.5 0.1 0.9 0.5 0.5 0.9 0.1 0.5",  # a rotated box
        BOX,
    ).data()
    report = files.prepare()
    assert report.defects == []
    assert report.notes == [
        "2 labels of 3 are polygons or rotated boxes: their bounding boxes are used"
    ]
    np.testing.assert_allclose(
        files.examples()["images/train/a"]["boxes"],
        [[0.2, 0.1, 0.8, 0.5], [0.1, 0.1, 0.9, 0.9], *INTACT],
        atol=1e-6,
    )


# (line, kind of the defect, words of the reason, boxes left of the line)
LINES = {
    "class too large": ("2 0.5 0.5 0.2 0.4", Kind.UNKNOWN_CLASS, "class 2; the classes are 0 to 1"),
    "negative class": ("-1 0.5 0.5 0.2 0.4", Kind.UNKNOWN_CLASS, "class -1"),
    "class with a fraction": ("0.5 0.5 0.5 0.2 0.4", Kind.UNREADABLE_BOX, "its class is 0.5"),
    "pixels": ("0 320 240 64 48", Kind.UNREADABLE_BOX, "are they pixels?"),
    "name": ("dog 0.5 0.5 0.2 0.4", Kind.UNREADABLE_BOX, "'dog 0.5 0.5 0.2 0.4' has values"),
    "commas": ("0,0.5,0.5,0.2,0.4", Kind.UNREADABLE_BOX, "not finite numbers"),
    "not a number": ("0 nan 0.5 0.2 0.4", Kind.UNREADABLE_BOX, "not finite numbers"),
    "infinite": ("0 0.5 0.5 inf 0.4", Kind.UNREADABLE_BOX, "not finite numbers"),
    "four values": ("0 0.5 0.5 0.2", Kind.UNREADABLE_BOX, "it has 4 values"),
    "a score too": (BOX + " 0.9", Kind.UNREADABLE_BOX, "it has 6 values"),
    "a polygon with a missing value": (
        "0 0.1 0.1 0.2 0.2 0.3 0.3 0.4",
        Kind.UNREADABLE_BOX,
        "it has 8 values",
    ),
    "no width": ("0 0.5 0.5 0 0.4", Kind.NO_AREA, "x 0.5…0.5"),
    "outside": ("0 1.5 0.5 0.2 0.4", Kind.OUTSIDE, "x 1.4…1.6"),
    "reaching out": ("0 0.95 0.5 0.2 0.4", Kind.CLIPPED, "x 0.85…1.05"),
    "negative width": ("0 0.5 0.5 -0.2 0.4", Kind.SWAPPED, "x 0.6…0.4"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_defect_is_named_and_the_rest_is_used(name, files):
    line, kind, words = LINES[name]
    files.both("a", BOX, line).data()
    report = files.prepare()
    assert report.counts() == {kind: 1}
    (defect,) = report.defects
    assert defect.file == "labels/train/a.txt"
    assert defect.reason.startswith("line 2: ")
    assert words in defect.reason
    repaired = kind in (Kind.CLIPPED, Kind.SWAPPED)
    boxes = files.examples()["images/train/a"]["boxes"]
    assert len(boxes) == 1 + repaired
    np.testing.assert_allclose(boxes[:1], INTACT, atol=1e-7)
    with pytest.raises(UserError, match="--strict does not allow"):
        files.prepare(strict=True)


@pytest.mark.parametrize("shape", [[17, 3], [3, 2]])
def test_keypoints_are_a_problem_that_is_named(shape, files):
    points = " ".join(["0.5"] * (shape[0] * shape[1]))
    files.both("a", f"{BOX} {points}").both("b").data(kpt_shape=shape)
    report = files.prepare()
    assert report.counts() == {Kind.UNREADABLE_BOX: 1}
    assert "with keypoints, which are not read: keep the first five" in report.defects[0].reason


def test_a_values_rounded_to_six_digits_do_not_reach_out(files):
    files.both("a", "0 0.083333 0.5 0.166667 1.000001").data()
    assert files.prepare().defects == []


@given(st.lists(st.floats(0, 1).map(lambda x: round(x, 6)), min_size=6, max_size=20))
def test_the_box_of_a_polygon_holds_all_its_points_and_no_smaller_box_does(values):
    points = values[: len(values) // 2 * 2]
    label = parse_line("3 " + " ".join(map(str, points)))
    xs = [points[i] for i in range(0, len(points), 2)]
    ys = [points[i] for i in range(1, len(points), 2)]
    assert label.corners == (min(ys), min(xs), max(ys), max(xs))
    assert label.number == 3 and label.is_polygon


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("images/train/a.jpg", "labels/train/a.txt"),
        ("train/images/a.b.PNG", "train/labels/a.b.txt"),
        ("images/images/images.jpg", "images/labels/images.txt"),
        ("my_images/a.jpg", "my_images/a.txt"),
        ("a.jpg", "a.txt"),
    ],
)
def test_where_labels_are(name, expected):
    """As Ultralytics: the last folder called images becomes labels."""
    assert label_path(name) == expected
    inside = os.path.splitext("/" + name)[0] + ".txt"
    assert "/" + expected == "/labels/".join(inside.rsplit("/images/", 1))


def test_roboflows_layout(files):
    for split in ("train", "valid", "test"):
        files.image(f"{split}/images/a.jpg").write(f"{split}/labels/a.txt", BOX)
    files.data(
        train="../train/images", val="../valid/images", test="../test/images", roboflow={"x": 1}
    )
    assert files.prepare().images == {"train": 1, "val": 1, "test": 1}
    assert set(files.examples("val")) == {"valid/images/a"}


def test_images_and_labels_side_by_side(files):
    files.image("pictures/a.jpg").write("pictures/a.txt", BOX).image("images/b.jpg")
    files.write("images/b.txt", BOX).write("images/classes.txt", "dog\ncat\n")
    files.data(train=["pictures", "images"])
    report = files.prepare()
    assert report.images == {"train": 2}
    assert report.boxes == {"dog": 2, "cat": 0}
    assert report.defects == []


def test_lists_of_images(files, tmp_path):
    files.both("a").both("b").both("c").both("d", split="val")
    files.write("train.txt", "./images/train/a.jpg\nimages/train/b.jpg\n\n./images/train/a.jpg\n")
    files.write("lists/val.txt", f"{files.path}/images/val/d.jpg\nimages\\train\\c.jpg\n")
    files.write(
        "lists/test.txt", "../images/train/c.jpg\n/etc/x.jpg\n../../x.jpg\nimages/x.jpg\nx\0y\n"
    )
    files.data(train="train.txt", val="lists/val.txt", test="lists/test.txt")
    report = files.prepare()
    assert report.images == {"train": 2, "val": 2, "test": 1}
    assert report.counts() == {Kind.LISTED_TWICE: 1, Kind.OUT_OF_FOLDER: 2, Kind.NO_IMAGE: 2}
    assert report.left_out == {"train": 0, "val": 0, "test": 4}
    assert list(files.examples("train")) == ["images/train/a", "images/train/b"]


def test_subfolders_are_searched_and_hidden_files_passed_over(files):
    files.both("cam1/f").both("cam2/f").image("images/train/._g.jpg").data()
    report = files.prepare()
    assert set(files.examples()) == {"images/train/cam1/f", "images/train/cam2/f"}
    assert report.notes[0] == "train: hidden files passed over: 1"


def test_label_files_of_no_image_are_defects(files):
    files.both("a").write("labels/train/b.txt", BOX).write("labels/train/classes.txt", "dog")
    files.data()
    report = files.prepare()
    assert report.counts() == {Kind.NO_IMAGE: 1}
    assert report.defects[0].file == "labels/train/b.txt"


def test_the_folder_of_another_machine_is_not_needed(files):
    files.both("a").data(path="/content/datasets/x")
    report = files.prepare()
    assert report.images == {"train": 1}
    assert "path /content/datasets/x of data.yaml is not used" in report.notes[0]


def test_path_and_folder(files, tmp_path):
    files.image("inner/images/train/a.jpg").write("inner/labels/train/a.txt", BOX)
    files.data(path="inner")
    assert set(files.prepare() and files.examples()) == {"inner/images/train/a"}
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "data.yaml").write_bytes((files.path / "data.yaml").read_bytes())
    yaml = tmp_path / "elsewhere" / "data.yaml"
    with pytest.raises(UserError, match=r"train is 'images/train', which does not exist in"):
        prepare_yolo_folder(yaml, tmp_path / "data", "other")
    folder = files.path / "inner"
    assert prepare_yolo_folder(yaml, tmp_path / "data", "other", folder).images == {"train": 1}


def test_nothing_outside_the_folder_is_read(files, tmp_path):
    (tmp_path / "secret" / "images").mkdir(parents=True)
    (tmp_path / "secret" / "images" / "a.jpg").write_bytes(jpeg())
    (tmp_path / "secret" / "a.txt").write_text(BOX)
    files.data(path=str(tmp_path / "secret"), train="images")
    with pytest.raises(UserError, match=r"everything with --folder \(nothing outside is read\)"):
        files.prepare()
    files.both("a").both("b").data()
    (files.path / "images" / "train" / "c.jpg").symlink_to(tmp_path / "secret/images/a.jpg")
    (files.path / "labels" / "train" / "b.txt").unlink()
    (files.path / "labels" / "train" / "b.txt").symlink_to(tmp_path / "secret/a.txt")
    report = files.prepare()
    assert report.counts() == {Kind.OUT_OF_FOLDER: 2}
    assert set(files.examples()) == {"images/train/a"}


def test_boxes_refer_to_the_image_as_displayed(files):
    files.both("a").image("images/train/a.jpg", with_exif(jpeg(), 6)).data()
    report = files.prepare()
    assert report.image_sizes["smallest"] == (WIDTH, HEIGHT)  # turned by 90°
    example = files.examples()["images/train/a"]
    assert example["orientation"] == 6
    np.testing.assert_allclose(example["boxes"], INTACT, atol=1e-7)


def test_broken_images_and_labels_are_left_out(files):
    files.both("a").both("b").both("c").image("images/train/b.jpg", jpeg()[:-60]).data()
    (files.path / "labels/train/c.txt").unlink()
    (files.path / "labels/train/c.txt").mkdir()
    report = files.prepare()
    assert report.counts() == {Kind.BROKEN_IMAGE: 1, Kind.BROKEN_ANNOTATION: 1}
    assert report.left_out == {"train": 2}


def test_a_missing_split_is_called_missing(files):
    files.both("a").data(val="images/val")
    report = files.prepare()
    assert report.counts() == {Kind.EMPTY_SPLIT: 1}
    assert "'images/val' does not exist in" in report.defects[0].reason
    files.data(train="images/trian")
    with pytest.raises(UserError, match=r"train is 'images/trian', which does not exist in .*Set"):
        files.prepare(force=True)


@pytest.mark.parametrize(
    ("names", "expected", "count"),
    [
        ({"0": "dog", "1": "cat"}, ("dog", "cat"), 0),
        ([7, 2.5], ("7", "2.5"), 2),
        (["dog", None], ("dog", "class_1"), 1),
        (["  ", "traffic \n light"], ("class_0", "traffic light"), 1),
        ([True, "cat"], ("True", "cat"), 1),
    ],
)
def test_class_names(names, expected, count, files):
    files.both("a").data(names=names)
    report = files.prepare()
    assert report.class_names == expected
    assert len(report.defects) == count


def test_class_numbers_as_keys_in_any_order(files):
    files.both("a").write("data.yaml", "train: images/train\nnames:\n  1: cat\n  0: dog\n")
    assert files.prepare().class_names == ("dog", "cat")


def test_classes_without_names_are_numbered(files):
    files.both("a").data(names=None, nc=3)
    report = files.prepare()
    assert report.class_names == ("class_0", "class_1", "class_2")
    assert "has no names" in report.notes[0]


YAMLS = {
    "nothing": ("", "is not a YOLO data file"),
    "a list": ("- a", "is not a YOLO data file"),
    "not YAML": ("a: [", "cannot be read as YAML"),
    "code": ("train: !!python/object/apply:os.system [ls]", "cannot be read as YAML"),
    "nested": ("a: " + "[" * 20_000, "nested too deeply|cannot be read as YAML"),
    "bytes": (b"\x00\x01\xff\x02", "cannot be read as YAML"),
    "no splits": ("names: [a]", "names no images"),
    "no names": ("train: images", "has the class names None"),
    "split of numbers": ("train: [1, 2]\nnames: [a]", r"train is \[1, 2\]"),
    "another count": ("train: images\nnames: [a]\nnc: 2", r"names \['a'\] and nc 2:"),
    "count of text": ("train: images\nnames: [a]\nnc: two", "nc 'two'"),
    "one name twice": ("train: images\nnames: [a, b, a]", "several classes have the name 'a'"),
    "gap": ("train: images\nnames: {0: a, 2: b}", "with the class numbers 0, 1, 2"),
    "name that is a list": ("train: images\nnames: [[a]]", r"the class names \[\['a'\]\]"),
    "an image": ("train: data.yaml\nnames: [a]", "neither a folder nor a .txt"),
}


@pytest.mark.parametrize("name", YAMLS)
def test_an_unusable_yaml_is_one_sentence(name, files):
    text, words = YAMLS[name]
    files.image("images/a.jpg").write("data.yaml", text)
    with pytest.raises(UserError, match=words) as error:
        files.prepare()
    assert "\n" not in str(error.value)
    assert "data.yaml" in str(error.value)


def test_missing_files_are_called_missing(files, tmp_path):
    with pytest.raises(UserError, match=r"data\.yaml does not exist"):
        files.prepare()
    with pytest.raises(UserError, match=r"Set is a folder: name the file in it, such as .*yaml"):
        prepare_yolo_folder(files.path, tmp_path / "data", "mine")
    files.both("a").data()
    with pytest.raises(UserError, match=r"the folder .*nowhere does not exist"):
        files.prepare(folder=tmp_path / "nowhere")


def test_changed_labels_are_noticed(files):
    files.both("a").both("b").data()
    first = files.prepare()
    assert files.prepare() == first
    files.both("a", "1 0.5 0.5 0.2 0.4")
    with pytest.raises(UserError, match="the files, classes or splits differ"):
        files.prepare()
    files.both("c")
    assert files.prepare(force=True).boxes == {"dog": 2, "cat": 1}


def test_classes_are_chosen_and_the_set_is_divided(files):
    for n in range(10):
        files.both(f"{n}", BOX, "1 0.25 0.5 0.5 1").image(f"images/train/{n}.jpg", jpeg(seed=n))
    files.data()
    report = files.prepare(choices=Choices(classes=("cat",), val=0.2))
    assert report.class_names == ("cat",)
    assert report.category_ids == (1,)
    assert report.images == {"train": 8, "val": 2}
    assert "boxes of classes that were not chosen, left out: 10 (dog 10)" in report.notes
    with pytest.raises(UserError, match=r"--classes names the class 'cow', which .* \(it has dog"):
        files.prepare(choices=Choices(classes=("cow",)), force=True)
