import contextlib
import json
import os
import unicodedata

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scratchdet_jax.data.sources import dataset_name
from scratchdet_jax.datasets.folders import prepare_voc_folder
from scratchdet_jax.datasets.objects import Kind, fit_box
from scratchdet_jax.datasets.report import PrepareReport
from scratchdet_jax.datasets.untrusted import MAX_IMAGE_BYTES, MAX_XML_BYTES
from scratchdet_jax.datasets.voc_xml import VOC_CLASSES, parse_annotation
from scratchdet_jax.errors import UserError
from tests.data.voc_layout import HEIGHT, WIDTH, Folder, annotation, examples, jpeg, obj, with_exif


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "Set")


@pytest.fixture
def prepare(folder, tmp_path):
    return lambda **options: prepare_voc_folder(folder.path, tmp_path / "data", "mine", **options)


def test_an_intact_folder_comes_back_unchanged(folder, prepare, tmp_path, capsys):
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
    assert report.ignored == 1
    assert report.left_out == {"train": 0, "val": 0}
    assert report.boxless == {"train": 1, "val": 0}
    assert report.image_sizes == dict.fromkeys(("smallest", "median", "largest"), (HEIGHT, WIDTH))
    assert report.box_sizes == {"small": 2, "medium": 1, "large": 0}
    assert report.category_ids is None
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

    directory = tmp_path / "data" / "voc_folder" / "mine" / "2.0.0"
    builder = tfds.builder_from_directory(directory)
    assert builder.info.features["objects"]["label"].names == ["blue", "red"]
    stored = builder.as_data_source("val", decoders={"image": tfds.decode.SkipDecoding()})
    assert bool(stored[0]["objects"]["is_truncated"][0])
    assert PrepareReport.from_json((directory / "report.json").read_text()) == report


# (function that damages an intact folder, kind of the defect, its file, words of the reason,
#  objects left in image "x" or None if the image is left out)
DEFECTS = {
    "swapped x": (
        lambda f: f.both("x", obj(box=(30, 5, 10, 25))),
        Kind.SWAPPED,
        "Annotations/x.xml",
        "object 1 (cell)",
        1,
    ),
    "swapped y": (
        lambda f: f.both("x", obj(box=(10, 25, 30, 5))),
        Kind.SWAPPED,
        "Annotations/x.xml",
        "y 25…5",
        1,
    ),
    "no area": (
        lambda f: f.both("x", obj(), obj(box=(10, 5, 10, 25))),
        Kind.NO_AREA,
        "Annotations/x.xml",
        "object 2 (cell): x 10…10",
        1,
    ),
    "outside": (
        lambda f: f.both("x", obj(box=(60, 5, 70, 25))),
        Kind.OUTSIDE,
        "Annotations/x.xml",
        "60…70",
        0,
    ),
    "outside, negative": (
        lambda f: f.both("x", obj(box=(-9, 5, 0, 25))),
        Kind.OUTSIDE,
        "Annotations/x.xml",
        "-9…0",
        0,
    ),
    "clipped": (
        lambda f: f.both("x", obj(box=(-3, 5, 61, 25))),
        Kind.CLIPPED,
        "Annotations/x.xml",
        "-3…61",
        1,
    ),
    "not a number": (
        lambda f: f.both("x", obj(box=("ten", 5, 30, 25)), obj()),
        Kind.UNREADABLE_BOX,
        "Annotations/x.xml",
        "its xmin is 'ten', not a number",
        1,
    ),
    "not finite": (
        lambda f: f.both("x", obj(box=(1, 5, "nan", 25))),
        Kind.UNREADABLE_BOX,
        "Annotations/x.xml",
        "its xmax is 'nan'",
        0,
    ),
    "no box": (
        lambda f: f.both("x", "<object><name>cell</name></object>"),
        Kind.UNREADABLE_BOX,
        "Annotations/x.xml",
        "it has no ymin",
        0,
    ),
    "no name": (
        lambda f: f.both("x", obj(name=" ")),
        Kind.UNREADABLE_BOX,
        "Annotations/x.xml",
        "it has no name",
        0,
    ),
    "flag": (
        lambda f: f.both("x", obj(difficult="maybe")),
        Kind.FLAG,
        "Annotations/x.xml",
        "difficult is 'maybe'",
        1,
    ),
    "size": (
        lambda f: f.image("x").note("x", annotation(obj(), width=600)),
        Kind.SIZE,
        "Annotations/x.xml",
        "it says 600×40 pixels, the image has 60×40",
        1,
    ),
    "no image": (
        lambda f: f.note("x", annotation(obj())),
        Kind.NO_IMAGE,
        "ImageSets/Main/train.txt",
        "x has no image",
        None,
    ),
    "id listed with its ending": (
        lambda f: f.both("x").split("train", "sound", "x", "x.jpg"),
        Kind.LISTED_TWICE,
        "ImageSets/Main/train.txt",
        "x is listed 2 times",
        1,
    ),
    "cut short": (
        lambda f: f.image("x", jpeg()[:-200]).note("x", annotation(obj())),
        Kind.BROKEN_IMAGE,
        "JPEGImages/x.jpg",
        "",
        None,
    ),
    "no picture": (
        lambda f: f.image("x", b"<html>not found</html>").note("x", annotation(obj())),
        Kind.BROKEN_IMAGE,
        "JPEGImages/x.jpg",
        "",
        None,
    ),
    "two images": (
        lambda f: f.both("x").image("x", suffix=".png"),
        Kind.TWO_FILES,
        "JPEGImages/x.png",
        "x.jpg is used",
        1,
    ),
    "no annotation": (
        lambda f: f.image("x"),
        Kind.NO_ANNOTATION,
        "JPEGImages/x.jpg",
        "there is no Annotations/x.xml",
        None,
    ),
    "malformed annotation": (
        lambda f: f.image("x").note("x", annotation(obj())[:-3]),
        Kind.BROKEN_ANNOTATION,
        "Annotations/x.xml",
        "not well-formed",
        None,
    ),
    "other annotation": (
        lambda f: f.image("x").note("x", "<html></html>"),
        Kind.BROKEN_ANNOTATION,
        "Annotations/x.xml",
        "<html>",
        None,
    ),
    "entities": (
        lambda f: f.image("x").note("x", f"<!DOCTYPE a []>{annotation(obj())}"),
        Kind.BROKEN_ANNOTATION,
        "Annotations/x.xml",
        "document type",
        None,
    ),
    "listed twice": (
        lambda f: f.both("x").split("train", "x", "sound", "x"),
        Kind.LISTED_TWICE,
        "ImageSets/Main/train.txt",
        "x is listed 2 times",
        1,
    ),
    "empty split": (
        lambda f: f.both("x").split("val"),
        Kind.EMPTY_SPLIT,
        "ImageSets/Main (val)",
        "listed: 0",
        1,
    ),
    "path out of the folder": (
        lambda f: f.both("x").split("train", "sound", "x", "../../secret"),
        Kind.OUT_OF_FOLDER,
        "ImageSets/Main/train.txt",
        "../../secret is not an id but a path",
        1,
    ),
    "image linked from outside": (
        lambda f: f.note("x", annotation(obj())).link("JPEGImages/x.jpg", jpeg()),
        Kind.OUT_OF_FOLDER,
        "JPEGImages/x.jpg",
        "link to something outside",
        None,
    ),
    "annotation linked from outside": (
        lambda f: f.image("x").link("Annotations/x.xml", annotation(obj()).encode()),
        Kind.OUT_OF_FOLDER,
        "Annotations/x.xml",
        "link to something outside",
        None,
    ),
    "link to itself": (
        lambda f: (
            f.note("x", annotation(obj())),
            (f.path / "JPEGImages" / "x.jpg").symlink_to("x.jpg"),
        ),
        Kind.BROKEN_IMAGE,
        "JPEGImages/x.jpg",
        "",
        None,
    ),
    "a folder for an image": (
        lambda f: (f.note("x", annotation(obj())), (f.path / "JPEGImages" / "x.jpg").mkdir()),
        Kind.BROKEN_IMAGE,
        "JPEGImages/x.jpg",
        "not a file",
        None,
    ),
    "a pipe for an image": (
        lambda f: (f.note("x", annotation(obj())), os.mkfifo(f.path / "JPEGImages" / "x.jpg")),
        Kind.BROKEN_IMAGE,
        "JPEGImages/x.jpg",
        "not a file",
        None,
    ),
    "an absurdly large annotation": (
        lambda f: f.image("x").note("x", annotation(obj()) + " " * MAX_XML_BYTES),
        Kind.BROKEN_ANNOTATION,
        "Annotations/x.xml",
        "at most 16 MiB are read",
        None,
    ),
    "an absurdly large image": (
        lambda f: (f.both("x"), os.truncate(f.path / "JPEGImages" / "x.jpg", MAX_IMAGE_BYTES + 1)),
        Kind.BROKEN_IMAGE,
        "JPEGImages/x.jpg",
        "at most 512 MiB are read",
        None,
    ),
    "deeply nested annotation": (
        lambda f: f.image("x").note("x", "<annotation>" + "<a>" * 100_000),
        Kind.BROKEN_ANNOTATION,
        "Annotations/x.xml",
        "nested more than 64 deep",
        None,
    ),
    "unknown encoding": (
        lambda f: f.image("x").note("x", '<?xml version="1.0" encoding="rot13"?><annotation/>'),
        Kind.BROKEN_ANNOTATION,
        "Annotations/x.xml",
        "not well-formed",
        None,
    ),
}


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
    stored = tmp_path / "data" / "voc_folder" / "mine" / "2.0.0" / "report.json"
    assert json.loads(stored.read_text())["counts"] == {kind: 1}


def test_the_report_has_all_defects_of_a_kind_and_the_summary_some(folder, prepare):
    bad = [obj(box=(3, 3, 3, 9))] * 8
    report = folder.both("a", obj(), *bad).split("train", "a") and prepare()
    assert len(report.defects) == 8
    assert "… and 5 more, see report.json" in report.summary()


def test_a_box_can_be_swapped_and_clipped_at_once(folder, prepare, tmp_path):
    folder.both("a", obj(box=(70, 5, 30, 25))).split("train", "a")
    assert prepare().counts() == {Kind.SWAPPED: 1, Kind.CLIPPED: 1}
    np.testing.assert_allclose(
        examples(tmp_path)["a"]["boxes"], [[5 / 40, 0.5, 25 / 40, 1]], rtol=1e-6
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.integers(-9, 70), st.floats(-9, 70)), min_size=4, max_size=4))
@example([5, 5, 5.000000001, 9])  # no area in float32
@example([-0.01, 0, 40, 60.015])  # rounding
def test_fit_box_is_the_part_inside_the_image(numbers):
    corners = tuple(map(float, numbers))
    box, kinds = fit_box(corners, (HEIGHT, WIDTH))
    (y0, y1), (x0, x1) = sorted(numbers[::2]), sorted(numbers[1::2])
    inside = (max(y0, 0), max(x0, 0), min(y1, HEIGHT), min(x1, WIDTH))
    if y0 == y1 or x0 == x1:
        assert (box, kinds) == (None, [Kind.NO_AREA])
    elif inside[0] >= inside[2] or inside[1] >= inside[3]:
        assert (box, kinds) == (None, [Kind.OUTSIDE])
    elif box is None:
        assert kinds == [Kind.NO_AREA]
        assert min(inside[2] - inside[0], inside[3] - inside[1]) < 1e-5
    else:
        assert np.all(np.float32(box[:2]) < np.float32(box[2:]))
        scale = np.array([HEIGHT, WIDTH, HEIGHT, WIDTH])
        np.testing.assert_allclose(np.array(box) * scale, inside, atol=1e-9)
        reach = np.abs(np.subtract(inside, (y0, x0, y1, x1))).max()
        assert (Kind.CLIPPED in kinds) == (reach > 0.02)
        assert (Kind.SWAPPED in kinds) == (numbers[::2] != [y0, y1] or numbers[1::2] != [x0, x1])


def test_boxes_refer_to_the_image_as_displayed(folder, prepare, tmp_path):
    turned = with_exif(jpeg(), 6)  # stored 60×40, shown 40×60
    folder.image("shown", turned).note(
        "shown", annotation(obj(box=(10, 6, 36, 24)), width=HEIGHT, height=WIDTH)
    )
    folder.image("stored", turned).note("stored", annotation(obj(box=(6, 4, 24, 30))))
    folder.image("unsaid", turned).note("unsaid", f"<annotation>{obj()}</annotation>")
    folder.image("mirrored", with_exif(jpeg(), 2)).note("mirrored", annotation(obj()))
    folder.split("train", "shown", "stored", "unsaid", "mirrored")
    report = prepare()
    assert [(d.kind, d.file) for d in report.defects] == [(Kind.TURNED, "Annotations/stored.xml")]
    assert "60×40 pixels, the image has them as stored, and 40×60 as shown" in str(report.defects)
    builder = tfds.builder_from_directory(tmp_path / "data" / "voc_folder" / "mine" / "2.0.0")
    stored = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    found = {r["image/id"].decode(): r for r in stored}
    assert [int(found[i]["image/orientation"]) for i in found] == [6, 6, 6, 2]
    assert {bytes(found[i]["image"]) for i in ("shown", "stored", "unsaid")} == {turned}
    boxes = {i: found[i]["objects"]["bbox"][0] for i in found}
    np.testing.assert_allclose(boxes["shown"], [6 / 60, 10 / 40, 24 / 60, 36 / 40], rtol=1e-6)
    # A quarter turn clockwise: left becomes top, bottom becomes left.
    np.testing.assert_allclose(boxes["stored"], [6 / 60, 10 / 40, 24 / 60, 36 / 40], rtol=1e-6)
    np.testing.assert_allclose(boxes["unsaid"], [5 / 60, 10 / 40, 25 / 60, 30 / 40], rtol=1e-6)
    np.testing.assert_allclose(boxes["mirrored"], [5 / 40, 10 / 60, 25 / 40, 30 / 60], rtol=1e-6)


BOMB = (
    "<!DOCTYPE a ["
    + '<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(12))
    + "]>"
)


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


def test_classes_that_differ_only_in_case_are_noted(folder, prepare):
    folder.both("a", obj("Cell"), obj("cell")).split("train", "a")
    notes = prepare().notes
    assert any("Cell" in note and "upper and lower case" in note for note in notes)


def test_without_lists_every_image_is_for_training(folder, prepare, tmp_path):
    folder.both("a").both("b").note("lost", annotation(obj())).split("cell_train", "a 1", "b -1")
    report = prepare()
    assert report.images == {"train": 2}
    assert any("all images form the split train" in note for note in report.notes)
    assert [(d.kind, d.file) for d in report.defects] == [(Kind.NO_IMAGE, "Annotations/lost.xml")]
    assert set(examples(tmp_path)) == {"a", "b"}


def test_splits_can_be_chosen_and_odd_names_are_adapted(folder, prepare, tmp_path):
    folder.both("a").both("b").both("c")
    folder.split("train-1", "a").split("all", "a", "b").split("my set", "b")
    report = prepare()
    assert report.images == {"train-1": 1, "all_images": 2, "my_set": 1}
    assert "images of JPEGImages in none of the splits used: 1" in report.notes
    for split, count in report.images.items():
        assert len(examples(tmp_path, split)) == count
    chosen = prepare_voc_folder(folder.path, tmp_path / "data", "one", splits=["train-1"])
    assert chosen.images == {"train-1": 1}
    with pytest.raises(UserError, match="has no split 'test'; it has all, my set, train-1"):
        prepare_voc_folder(folder.path, tmp_path / "data", "two", splits=["test"])


def test_nothing_usable_is_an_error_with_the_reasons(folder, prepare, tmp_path):
    folder.image("a").split("train", "a", "b")
    with pytest.raises(UserError) as error:
        prepare()
    assert "no usable image" in str(error.value)
    assert "1 × missing image" in str(error.value)
    assert "1 × image without annotation" in str(error.value)
    folder.note("a", annotation())
    with pytest.raises(UserError, match="no usable box"):
        prepare()
    assert not (tmp_path / "data" / "voc_folder").exists()


def test_wrong_folders_names_and_classes_are_errors(folder, prepare, tmp_path):
    with pytest.raises(UserError, match=r"did you mean .*Set"):
        prepare_voc_folder(tmp_path, tmp_path / "data", "mine")
    with pytest.raises(UserError, match=r"nowhere does not exist$"):
        prepare_voc_folder(tmp_path / "nowhere", tmp_path / "data", "mine")
    (tmp_path / "Set.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"Set\.zip is a file, not a folder$"):
        prepare_voc_folder(tmp_path / "Set.zip", tmp_path / "data", "mine")
    for name in ("", "a/b", "1.0.0", "a:b", ".."):
        with pytest.raises(UserError, match="cannot name a data set"):
            prepare_voc_folder(folder.path, tmp_path / "data", name)
    for names in ([], ["a", "a"], ["a", ""]):
        with pytest.raises(UserError, match="empty or repeated"):
            prepare(class_names=names)


def test_the_default_name_comes_from_the_folder():
    assert dataset_name("VOCdevkit/VOC2007") == "voc2007"
    assert dataset_name("/data/My cells (2)/") == "my_cells_2"


def test_file_names_in_any_encoding(folder, prepare, tmp_path):
    images, notes = folder.path / "JPEGImages", folder.path / "Annotations"
    text = annotation(obj())
    (images / "Zelle_ä.JPG").write_bytes(jpeg())  # composed; decomposed in the list
    (notes / unicodedata.normalize("NFD", "Zelle_ä.XML")).write_text(text)
    latin = b"caf\xe9"
    with open(os.fsencode(images) + b"/" + latin + b".webp", "wb") as file:
        file.write(cv2.imencode(".webp", np.full((HEIGHT, WIDTH, 3), 9, np.uint8))[1].tobytes())
    with open(os.fsencode(notes) + b"/" + latin + b".xml", "w") as file:
        file.write(text)
    (images / "細胞 1.bmp").write_bytes(
        cv2.imencode(".bmp", np.full((HEIGHT, WIDTH, 3), 9, np.uint8))[1].tobytes()
    )
    (notes / "細胞 1.xml").write_bytes(text.encode("utf-16"))
    lines = unicodedata.normalize("NFD", "Zelle_ä").encode() + b"\r\n" + latin + b"\n"
    (folder.path / "ImageSets" / "Main" / "train.txt").write_bytes(lines)
    (folder.path / "ImageSets" / "Main" / "val.TXT").write_bytes("細胞 1\n".encode("utf-16"))
    report = prepare()
    assert report.defects == []
    assert report.images == {"train": 2, "val": 1}
    found = examples(tmp_path, "train+val")
    assert {i: e["filename"] for i, e in found.items()} == {
        "Zelle_ä": "Zelle_ä.JPG",
        "café": "café.webp",
        "細胞 1": "細胞 1.bmp",
    }


def test_the_root_may_be_a_link_but_its_parts_must_not_lead_outside(folder, prepare, tmp_path):
    folder.both("a").split("train", "a")
    (tmp_path / "link").symlink_to(folder.path)
    report = prepare_voc_folder(tmp_path / "link", tmp_path / "data", "linked")
    assert report.defects == []
    (folder.path / "JPEGImages").rename(tmp_path / "pictures")
    (folder.path / "JPEGImages").symlink_to(tmp_path / "pictures")
    with pytest.raises(UserError, match=r"JPEGImages is a link .* with `prepare voc --images=JPEG"):
        prepare()
