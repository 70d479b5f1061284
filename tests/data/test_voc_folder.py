import contextlib
import json
import struct

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchdet_jax.data.builders import voc_scan
from scratchdet_jax.data.builders.voc_folder import VocFolder, dataset_name, prepare_voc_folder
from scratchdet_jax.data.builders.voc_report import Kind, Report
from scratchdet_jax.data.builders.voc_scan import VOC_CLASSES
from scratchdet_jax.data.records import open_source
from scratchdet_jax.data.voc_xml import VocObject, parse_annotation
from scratchdet_jax.errors import UserError

HEIGHT, WIDTH = 40, 60


def jpeg(height=HEIGHT, width=WIDTH, seed=0):
    image = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


def obj(name="cell", box=(10, 5, 30, 25), difficult="0", extra=""):
    """One <object>; ``box`` is (xmin, ymin, xmax, ymax), as people read it."""
    corners = "".join(
        f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>{extra}"
        f"<bndbox>{corners}</bndbox></object>"
    )


def annotation(*objects, width=WIDTH, height=HEIGHT):
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>wrong.jpg</filename>{size}{''.join(objects)}</annotation>"


class Folder:
    """A folder in VOC layout, made file by file."""

    def __init__(self, path):
        self.path = path
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (path / part).mkdir(parents=True)

    def image(self, image_id, data=None, suffix=".jpg"):
        (self.path / "JPEGImages" / f"{image_id}{suffix}").write_bytes(data or jpeg())
        return self

    def note(self, image_id, text):
        (self.path / "Annotations" / f"{image_id}.xml").write_text(text)
        return self

    def both(self, image_id, *objects):
        return self.image(image_id).note(image_id, annotation(*(objects or (obj(),))))

    def split(self, name, *lines):
        text = "".join(line + "\n" for line in lines)
        (self.path / "ImageSets" / "Main" / f"{name}.txt").write_text(text)
        return self


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "Set")


@pytest.fixture
def prepare(folder, tmp_path):
    return lambda **options: prepare_voc_folder(folder.path, tmp_path / "data", "mine", **options)


def examples(tmp_path, split="train"):
    source = open_source(f"voc_folder/mine:{split}", tmp_path / "data")
    return {e["image_id"]: e for e in (source[i] for i in range(len(source)))}


def test_a_sound_folder_comes_back_as_it_is(folder, prepare, tmp_path, capsys):
    folder.image("a", jpeg(seed=1)).image("b.1", jpeg(seed=2), ".JPEG")
    png = cv2.imencode(".png", np.full((HEIGHT, WIDTH), 7, np.uint8))[1].tobytes()
    folder.image("c", png, ".png")
    folder.note("a", annotation(obj("red", (0, 0, 60, 40)), obj("blue", (6, 4, 12, 8), "1")))
    folder.note("b.1", annotation(obj("red", (1.5, 2, 3, 4), extra="<truncated>1</truncated>")))
    folder.note("c", annotation())
    folder.split("train", "a", "c", "").split("val", "b.1").split("red_train", "a  1", "c -1")
    report = prepare()

    assert report.images == {"train": 2, "val": 1}
    assert report.class_names == ("blue", "red")
    assert report.boxes == {"blue": 1, "red": 2}
    assert report.difficult == 1
    assert report.defects == []
    assert report.summary() in capsys.readouterr().out

    train = examples(tmp_path)
    assert set(train) == {"a", "c"}
    assert train["a"]["image"] == jpeg(seed=1)
    assert train["c"]["image"] == png
    assert train["a"]["filename"] == "a.jpg"
    np.testing.assert_allclose(train["a"]["boxes"], [[0, 0, 1, 1], [0.1, 0.1, 0.2, 0.2]])
    np.testing.assert_array_equal(train["a"]["labels"], [2, 1])
    np.testing.assert_array_equal(train["a"]["ignore"], [False, True])
    assert train["c"]["boxes"].shape == (0, 4)
    val = examples(tmp_path, "val")
    np.testing.assert_allclose(val["b.1"]["boxes"], [[2 / 40, 1.5 / 60, 4 / 40, 3 / 60]])
    assert val["b.1"]["filename"] == "b.1.JPEG"

    directory = tmp_path / "data" / "voc_folder" / "mine" / "1.0.0"
    builder = tfds.builder_from_directory(directory)
    assert builder.info.features["objects"]["label"].names == ["blue", "red"]
    stored = builder.as_data_source("val", decoders={"image": tfds.decode.SkipDecoding()})
    assert bool(stored[0]["objects"]["is_truncated"][0])
    assert Report.from_json((directory / "report.json").read_text()) == report


# (what is done to a sound folder, the defect's kind, its file, words of the reason,
#  objects left of image "x", or None where the image is left out)
DEFECTS = {
    "swapped x": (
        lambda f: f.both("x", obj(box=(30, 5, 10, 25))),
        Kind.SWAPPED, "Annotations/x.xml", "object 1 (cell)", 1,
    ),
    "swapped y": (
        lambda f: f.both("x", obj(box=(10, 25, 30, 5))),
        Kind.SWAPPED, "Annotations/x.xml", "y 25…5", 1,
    ),
    "no area": (
        lambda f: f.both("x", obj(), obj(box=(10, 5, 10, 25))),
        Kind.NO_AREA, "Annotations/x.xml", "object 2 (cell): x 10…10", 1,
    ),
    "outside": (
        lambda f: f.both("x", obj(box=(60, 5, 70, 25))),
        Kind.OUTSIDE, "Annotations/x.xml", "60…70", 0,
    ),
    "outside, negative": (
        lambda f: f.both("x", obj(box=(-9, 5, 0, 25))),
        Kind.OUTSIDE, "Annotations/x.xml", "-9…0", 0,
    ),
    "clipped": (
        lambda f: f.both("x", obj(box=(-3, 5, 61, 25))),
        Kind.CLIPPED, "Annotations/x.xml", "-3…61", 1,
    ),
    "not a number": (
        lambda f: f.both("x", obj(box=("ten", 5, 30, 25)), obj()),
        Kind.UNREADABLE_BOX, "Annotations/x.xml", "its xmin is 'ten', not a number", 1,
    ),
    "not finite": (
        lambda f: f.both("x", obj(box=(1, 5, "nan", 25))),
        Kind.UNREADABLE_BOX, "Annotations/x.xml", "its xmax is 'nan'", 0,
    ),
    "no box": (
        lambda f: f.both("x", "<object><name>cell</name></object>"),
        Kind.UNREADABLE_BOX, "Annotations/x.xml", "it has no ymin", 0,
    ),
    "no name": (
        lambda f: f.both("x", obj(name=" ")),
        Kind.UNREADABLE_BOX, "Annotations/x.xml", "it has no name", 0,
    ),
    "flag": (
        lambda f: f.both("x", obj(difficult="maybe")),
        Kind.FLAG, "Annotations/x.xml", "difficult is 'maybe'", 1,
    ),
    "size": (
        lambda f: f.image("x").note("x", annotation(obj(), width=600)),
        Kind.SIZE, "Annotations/x.xml", "it says 600×40 pixels, the image has 60×40", 1,
    ),
    "no image": (
        lambda f: f.note("x", annotation(obj())),
        Kind.NO_IMAGE, "ImageSets/Main/train.txt", "x has no image", None,
    ),
    "id listed with its ending": (
        lambda f: f.both("x").split("train", "sound", "x", "x.jpg"),
        Kind.NO_IMAGE, "ImageSets/Main/train.txt", "without the file's ending", 1,
    ),
    "cut short": (
        lambda f: f.image("x", jpeg()[:-200]).note("x", annotation(obj())),
        Kind.BROKEN_IMAGE, "JPEGImages/x.jpg", "ends before", None,
    ),
    "no picture": (
        lambda f: f.image("x", b"<html>not found</html>").note("x", annotation(obj())),
        Kind.BROKEN_IMAGE, "JPEGImages/x.jpg", "no readable image", None,
    ),
    "two images": (
        lambda f: f.both("x").image("x", suffix=".png"),
        Kind.TWO_IMAGES, "JPEGImages/x.png", "x.jpg is used", 1,
    ),
    "no annotation": (
        lambda f: f.image("x"),
        Kind.NO_ANNOTATION, "JPEGImages/x.jpg", "there is no Annotations/x.xml", None,
    ),
    "malformed annotation": (
        lambda f: f.image("x").note("x", annotation(obj())[:-3]),
        Kind.BROKEN_ANNOTATION, "Annotations/x.xml", "not well-formed", None,
    ),
    "other annotation": (
        lambda f: f.image("x").note("x", "<html></html>"),
        Kind.BROKEN_ANNOTATION, "Annotations/x.xml", "<html>", None,
    ),
    "entities": (
        lambda f: f.image("x").note("x", f"<!DOCTYPE a []>{annotation(obj())}"),
        Kind.BROKEN_ANNOTATION, "Annotations/x.xml", "document type", None,
    ),
    "listed twice": (
        lambda f: f.both("x").split("train", "x", "sound", "x"),
        Kind.LISTED_TWICE, "ImageSets/Main/train.txt", "x stands there 2 times", 1,
    ),
    "empty split": (
        lambda f: f.both("x").split("val"),
        Kind.EMPTY_SPLIT, "ImageSets/Main (val)", "none of its 0 images", 1,
    ),
    "path out of the folder": (
        lambda f: f.both("x").split("train", "sound", "x", "../../secret"),
        Kind.NO_IMAGE, "ImageSets/Main/train.txt", "../../secret has no image", 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_named_and_the_rest_is_used(name, folder, prepare, tmp_path, capsys):
    spoil, kind, file, words, left = DEFECTS[name]
    folder.both("sound", obj(), obj()).split("train", "sound", "x")
    spoil(folder)
    report = prepare()
    assert [(d.kind, d.file) for d in report.defects] == [(kind, file)]
    assert words in report.defects[0].reason
    assert report.counts() == {kind: 1}
    printed = capsys.readouterr().out
    assert f"1 × {kind}" in printed
    assert report.defects[0].reason in printed
    found = examples(tmp_path)
    assert len(found["sound"]["boxes"]) == 2
    if left is None:
        assert set(found) == {"sound"}
    else:
        assert set(found) == {"sound", "x"}
        assert len(found["x"]["boxes"]) == left
        assert np.all(found["x"]["boxes"][:, 2:] > found["x"]["boxes"][:, :2])
    stored = tmp_path / "data" / "voc_folder" / "mine" / "1.0.0" / "report.json"
    assert json.loads(stored.read_text())["counts"] == {kind: 1}


def test_many_defects_of_a_kind_are_all_in_the_report_and_some_in_the_summary(folder, prepare):
    bad = [obj(box=(3, 3, 3, 9))] * 8
    report = folder.both("a", obj(), *bad).split("train", "a") and prepare()
    assert len(report.defects) == 8
    assert "… and 3 more, see report.json" in report.summary()


def test_a_box_can_be_swapped_and_clipped_at_once(folder, prepare, tmp_path):
    folder.both("a", obj(box=(70, 5, 30, 25))).split("train", "a")
    assert prepare().counts() == {Kind.SWAPPED: 1, Kind.CLIPPED: 1}
    np.testing.assert_allclose(
        examples(tmp_path)["a"]["boxes"], [[5 / 40, 0.5, 25 / 40, 1]], rtol=1e-6
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.integers(-9, 70), st.floats(-9, 70)), min_size=4, max_size=4))
def test_check_box_is_the_part_inside_the_image(numbers):
    item = VocObject("a", tuple(map(float, numbers)), False, False, "")
    box, kinds = voc_scan._check_box(item, (HEIGHT, WIDTH))
    (y0, y1), (x0, x1) = sorted(numbers[::2]), sorted(numbers[1::2])
    inside = (max(y0, 0), max(x0, 0), min(y1, HEIGHT), min(x1, WIDTH))
    if y0 == y1 or x0 == x1:
        assert (box, kinds) == (None, [Kind.NO_AREA])
    elif inside[0] >= inside[2] or inside[1] >= inside[3]:
        assert (box, kinds) == (None, [Kind.OUTSIDE])
    else:
        scale = np.array([HEIGHT, WIDTH, HEIGHT, WIDTH])
        np.testing.assert_allclose(np.array(box) * scale, inside, atol=1e-9)
        assert (Kind.CLIPPED in kinds) == (inside != (y0, x0, y1, x1))
        assert (Kind.SWAPPED in kinds) == (numbers[::2] != [y0, y1] or numbers[1::2] != [x0, x1])


def with_exif(data, orientation):
    """The JPEG with an EXIF block that asks for a turn (6 = a quarter clockwise)."""
    tiff = b"MM\0*" + struct.pack(">IHHHIHH", 8, 1, 0x0112, 3, 1, orientation, 0) + b"\0" * 4
    block = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


def test_an_image_annotated_as_turned_is_left_out_and_as_stored_is_used(folder, prepare, tmp_path):
    folder.both("sound").split("train", "sound", "turned", "stored")
    folder.image("turned", with_exif(jpeg(), 6))
    folder.note("turned", annotation(obj(box=(1, 2, 39, 59)), width=HEIGHT, height=WIDTH))
    folder.image("stored", with_exif(jpeg(), 6)).note("stored", annotation(obj()))
    report = prepare()
    assert [(d.kind, d.file) for d in report.defects] == [
        (Kind.TURNED_IMAGE, "JPEGImages/turned.jpg")
    ]
    assert set(examples(tmp_path)) == {"sound", "stored"}


def jpeg_with_thumbnail(seed=0):
    """A JPEG whose header holds a whole small JPEG, end marker and all."""
    data, block = jpeg(seed=seed), b"Exif\0\0" + jpeg(8, 8)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 3), st.floats(0, 1), st.booleans())
def test_a_cut_jpeg_is_never_taken_for_whole(seed, share, thumbnail):
    data = jpeg_with_thumbnail(seed) if thumbnail else jpeg(seed=seed)
    assert voc_scan._is_whole(data)
    assert voc_scan._is_whole(data + b"\0\0trailing")
    cut = data[: int(2 + share * (len(data) - 3))]
    assert not voc_scan._is_whole(cut)


def test_progressive_and_restart_jpegs_and_pngs_are_whole_until_cut():
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    encodings = [
        (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]), (".jpg", [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]),
        (".png", []),
    ]  # fmt: skip
    for suffix, options in encodings:
        data = cv2.imencode(suffix, image, options)[1].tobytes()
        assert voc_scan._is_whole(data)
        for cut in range(len(data) // 3, len(data), 97):
            assert not voc_scan._is_whole(data[:cut])


BOMB = "<!DOCTYPE a [" + '<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(12)
) + "]>"  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused_in_any_encoding(encoding):
    text = f'<?xml version="1.0" encoding="{encoding}"?>{BOMB}<annotation>&m;</annotation>'
    with pytest.raises(ValueError, match="document type or entities"):
        parse_annotation(text.encode(encoding))
    external = (
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
        "<annotation><object><name>&x;</name></object></annotation>"
    )
    with pytest.raises(ValueError, match="document type or entities"):
        parse_annotation(external.encode(encoding))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 400))
def test_a_damaged_annotation_raises_nothing_but_value_error(junk, place):
    text = annotation(obj(), obj()).encode()
    with contextlib.suppress(ValueError):
        parse_annotation(text[:place] + junk + text[place:])


def test_vocs_classes_keep_vocs_order(folder, prepare, tmp_path):
    folder.both("a", obj("person"), obj("cat")).split("train", "a")
    report = prepare()
    assert report.class_names == VOC_CLASSES
    assert any("VOC's 20" in note for note in report.notes)
    assert list(examples(tmp_path)["a"]["labels"]) == [15, 8]


def test_given_classes_keep_their_order_and_others_are_left_out(folder, prepare, tmp_path):
    folder.both("a", obj("cat"), obj("dgo"), obj("dog")).split("train", "a")
    report = prepare(class_names=["dog", "cat"])
    assert report.class_names == ("dog", "cat")
    (defect,) = report.defects
    assert defect.kind == Kind.UNKNOWN_CLASS
    assert defect.reason == "object 2 (dgo); did you mean dog?"
    assert list(examples(tmp_path)["a"]["labels"]) == [2, 1]


def test_classes_that_differ_in_capitals_only_are_pointed_out(folder, prepare):
    folder.both("a", obj("Cell"), obj("cell")).split("train", "a")
    notes = prepare().notes
    assert any("Cell" in note and "capitals" in note for note in notes)


def test_without_lists_every_image_is_for_training(folder, prepare, tmp_path):
    folder.both("a").both("b").note("lost", annotation(obj())).split("cell_train", "a 1", "b -1")
    report = prepare()
    assert report.images == {"train": 2}
    assert any("all images are the split train" in note for note in report.notes)
    assert [(d.kind, d.file) for d in report.defects] == [(Kind.NO_IMAGE, "Annotations/lost.xml")]
    assert set(examples(tmp_path)) == {"a", "b"}


def test_splits_can_be_chosen_and_odd_names_are_made_to_fit(folder, prepare, tmp_path):
    folder.both("a").both("b").both("c")
    folder.split("train-1", "a").split("all", "a", "b").split("my set", "b")
    report = prepare()
    assert report.images == {"train-1": 1, "all_images": 2, "my_set": 1}
    assert "1 images of JPEGImages are in no split that is used" in report.notes
    for split, count in report.images.items():
        assert len(examples(tmp_path, split)) == count
    chosen = prepare_voc_folder(folder.path, tmp_path / "data", "one", splits=["train-1"])
    assert chosen.images == {"train-1": 1}
    with pytest.raises(UserError, match="has no split 'test'; it has all, my set, train-1"):
        prepare_voc_folder(folder.path, tmp_path / "data", "two", splits=["test"])


def test_nothing_usable_is_an_error_that_says_why(folder, prepare, tmp_path):
    folder.image("a").split("train", "a", "b")
    with pytest.raises(UserError) as error:
        prepare()
    assert "no usable image" in str(error.value)
    assert "1 × missing image" in str(error.value)
    assert "1 × image without annotation" in str(error.value)
    folder.note("a", annotation())
    with pytest.raises(UserError, match="no usable box"):
        prepare()
    assert not (tmp_path / "data").exists()


def test_wrong_folders_names_and_classes_are_errors(folder, prepare, tmp_path):
    with pytest.raises(UserError, match=r"did you mean .*Set"):
        prepare_voc_folder(tmp_path, tmp_path / "data", "mine")
    with pytest.raises(UserError, match="it has no folder JPEGImages"):
        prepare_voc_folder(tmp_path / "nowhere", tmp_path / "data", "mine")
    for name in ("", "a/b", "1.0.0", "a:b", ".."):
        with pytest.raises(UserError, match="cannot name a data set"):
            prepare_voc_folder(folder.path, tmp_path / "data", name)
    for names in ([], ["a", "a"], ["a", ""]):
        with pytest.raises(UserError, match="empty or repeated"):
            prepare(class_names=names)


def test_prepared_once_while_nothing_changes(folder, prepare, tmp_path, capsys):
    folder.both("a").split("train", "a")
    report = prepare()
    directory = tmp_path / "data" / "voc_folder" / "mine" / "1.0.0"
    before = {p: p.stat().st_mtime_ns for p in directory.iterdir()}
    capsys.readouterr()
    assert prepare() == report
    assert "prepared already" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in directory.iterdir()} == before

    with pytest.raises(UserError, match="delete that directory"):
        prepare(class_names=["cell"])
    folder.note("a", annotation(obj(box=(11, 5, 30, 25))))
    with pytest.raises(UserError, match="delete that directory"):
        prepare()
    (directory / "report.json").write_text("{}")
    with pytest.raises(UserError, match=r"no readable report\.json"):
        prepare()


def test_a_preparation_that_fails_leaves_nothing(folder, prepare, tmp_path, monkeypatch):
    folder.both("a").both("b").split("train", "a", "b")
    generate = VocFolder._generate_examples

    def stop_after_one(self, ids):
        yield next(generate(self, ids))
        raise RuntimeError("power cut")

    monkeypatch.setattr(VocFolder, "_generate_examples", stop_after_one)
    with pytest.raises(RuntimeError, match="power cut"):
        prepare()
    assert [p for p in (tmp_path / "data").rglob("*") if p.is_file()] == []
    monkeypatch.undo()
    prepare()
    assert set(examples(tmp_path)) == {"a", "b"}


def test_the_default_name_comes_from_the_folder():
    assert dataset_name("VOCdevkit/VOC2007") == "voc2007"
    assert dataset_name("/data/My cells (2)/") == "my_cells_2"
