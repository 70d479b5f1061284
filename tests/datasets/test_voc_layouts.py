"""Layouts in which tools write images and VOC annotations: all give the same examples."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchdet_jax.config import defaults
from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.data.sources import open_split
from scratchdet_jax.datasets.folders import prepare_voc_folder
from scratchdet_jax.datasets.objects import Kind
from scratchdet_jax.datasets.untrusted import decode_text
from scratchdet_jax.datasets.voc_scan import fingerprint, list_folder, read_ground_truth
from scratchdet_jax.errors import UserError
from scratchdet_jax.tools import prepare as tool
from tests.data.voc_layout import annotation, jpeg, obj

JPEG = jpeg()
XML = annotation(obj())


@pytest.fixture
def root(tmp_path):
    return tmp_path / "Set"


@pytest.fixture
def prepare(root, tmp_path):
    return lambda **options: prepare_voc_folder(root, tmp_path / "data", "mine", **options)


def write(root, *names, xml=XML, image=JPEG):
    """Writes files by their suffixes: images, annotations, and lists given as (name, lines)."""
    for name in names:
        name, lines = name if isinstance(name, tuple) else (name, ())
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".txt":
            path.write_text("".join(f"{line}\n" for line in lines))
        elif path.suffix.lower() == ".xml":
            path.write_text(xml)
        else:
            path.write_bytes(image)


def ids(tmp_path, split="train"):
    source = DetectionSource(f"voc_folder/mine:{split}", tmp_path / "data")
    return [source.image_id(i) for i in range(len(source))]


# Layouts without lists and splits.

ONE_SPLIT = {
    "VOC": ("JPEGImages/{}.jpg", "Annotations/{}.xml"),
    "VOC in small letters": ("jpegimages/{}.jpg", "ANNOTATIONS/{}.xml"),
    "images and annotations": ("images/{}.jpg", "annotations/{}.xml"),
    "Images and Annotations": ("Images/{}.JPG", "Annotations/{}.XML"),
    "images and labels": ("images/{}.jpg", "labels/{}.xml"),
    "Label Studio": ("images/{}.jpg", "Annotations/{}.xml"),
    "Oxford pets": ("images/{}.jpg", "annotations/xmls/{}.xml"),
    "VOC with xmls": ("JPEGImages/{}.jpg", "Annotations/xmls/{}.xml"),
    "LabelImg": ("{}.jpg", "{}.xml"),
    "side by side in images": ("images/{}.jpg", "images/{}.xml"),
    "images, annotations beside the folder": ("images/{}.jpg", "{}.xml"),
    "folders of VOC": ("JPEGImages/cam1/{}.jpg", "Annotations/cam1/{}.xml"),
    "folders side by side": ("cam1/{}.jpg", "cam1/{}.xml"),
}
SPLIT = {
    "Roboflow": ("{1}/{0}.jpg", "{1}/{0}.xml"),
    "images and annotations in each split": ("{1}/images/{0}.jpg", "{1}/annotations/{0}.xml"),
    "VOC in each split": ("{1}/JPEGImages/{0}.jpg", "{1}/Annotations/{0}.xml"),
    "splits in images and annotations": ("images/{1}/{0}.jpg", "annotations/{1}/{0}.xml"),
    "splits in images and labels": ("images/{1}/{0}.jpg", "labels/{1}/{0}.xml"),
}
LISTED = {
    "VOC": "{0}",
    "with suffix": "{0}.jpg",
    "with the folder": "JPEGImages/{0}.jpg",
    "Darknet": "data/obj/{0}.jpg",
    "absolute": "/home/me/set/JPEGImages/{0}.jpg",
    "Windows": "C:\\set\\JPEGImages\\{0}.jpg",
    "here": "./{0}.jpg",
}


@pytest.mark.parametrize("name", ONE_SPLIT)
def test_layouts_of_one_split(name, root, prepare, tmp_path):
    for image_id in ("a", "b.1", "c 2"):
        write(root, *(pattern.format(image_id) for pattern in ONE_SPLIT[name]))
    report = prepare()
    assert report.images == {"train": 3}
    assert report.defects == []
    assert any("all images form the split train" in note for note in report.notes)
    folder = "cam1/" if "cam1" in ONE_SPLIT[name][0] else ""
    assert ids(tmp_path) == [f"{folder}{i}" for i in ("a", "b.1", "c 2")]


@pytest.mark.parametrize("name", SPLIT)
def test_folders_are_splits(name, root, prepare, tmp_path):
    for split, images in (("train", "ab"), ("valid", "ac"), ("test", "d")):
        for image_id in images:
            write(root, *(pattern.format(image_id, split) for pattern in SPLIT[name]))
    (root / "README.roboflow.txt").write_text("exported")
    report = prepare()
    assert report.images == {"test": 1, "train": 2, "valid": 2}
    assert report.defects == []
    assert "the folders are the splits: test, train, valid" in report.notes
    assert ids(tmp_path, "train") == ["train/a", "train/b"]
    assert ids(tmp_path, "valid") == ["valid/a", "valid/c"]
    source = DetectionSource("voc_folder/mine:valid", tmp_path / "data")
    assert source[0]["filename"] in ("valid/a.jpg", "valid/images/a.jpg", "valid/JPEGImages/a.jpg")
    chosen = prepare_voc_folder(root, tmp_path / "data", "one", splits=["valid"])
    assert chosen.images == {"valid": 2}
    with pytest.raises(UserError, match="has no split 'val'; it has test, train, valid"):
        prepare_voc_folder(root, tmp_path / "data", "two", splits=["val"])


@pytest.mark.parametrize("name", LISTED)
def test_lines_of_lists_are_read_as_the_ids_they_mean(name, root, prepare, tmp_path):
    members = {"train": ["a", "c 2"], "val": ["b.1"]}
    for split, images in members.items():
        write(root, *(f"{p}{i}{s}" for i in images for p, s in VOC_FILES))
        lines = [LISTED[name].format(i) for i in images]
        write(root, (f"ImageSets/Main/{split}.txt", lines))
    report = prepare()
    assert report.defects == []
    assert ids(tmp_path, "train") == members["train"]
    assert ids(tmp_path, "val") == members["val"]
    told = [note for note in report.notes if "read as ids" in note]
    assert len(told) == (0 if name == "VOC" else 2)
    if told:
        assert told[0].startswith("ImageSets/Main/train.txt: 2 lines read as ids, such as ")
        assert told[0].endswith(" as a")


VOC_FILES = (("JPEGImages/", ".jpg"), ("Annotations/", ".xml"))

layouts = (
    [("one", pair) for pair in ONE_SPLIT.values()]
    + [("folders", pair) for pair in SPLIT.values()]
    + [("lists", (line, "JPEGImages/{}.jpg", "Annotations/{}.xml")) for line in LISTED.values()]
    + [
        ("lists", (line, "imgs/c/{}.jpg", "labels/c/{}.xml"))
        for line in ("c/{}", "x/imgs/c/{}.jpg")
    ]
)


def examples_of(contents, kind, patterns):
    """Writes {split: {name: (seed, boxes)}} in a layout; the examples by split and name."""
    with tempfile.TemporaryDirectory() as place:
        root, data = Path(place) / "Set", Path(place) / "data"
        for split, images in contents.items():
            for name, (seed, boxes) in images.items():
                own = name if kind == "folders" else f"{split}_{name}"
                xml = annotation(*(obj(f"kind{n % 3}", box) for n, box in enumerate(boxes)))
                for pattern in patterns[-2:]:
                    path = pattern.format(own, split)
                    write(root, path, xml=xml, image=jpeg(seed=seed))
            if kind == "lists":
                lines = [patterns[0].format(f"{split}_{name}") for name in images]
                write(root, (f"ImageSets/Main/{split}.txt", lines))
        report = prepare_voc_folder(root, data, "mine")
        assert report.defects == []
        found = {}
        for split in report.images:
            source = DetectionSource(f"voc_folder/mine:{split}", data)
            for i in range(len(source)):
                example = source[i]
                own = example["image_id"].rpartition("/")[2]
                of, _, name = own.partition("_") if kind != "folders" else (split, "", own)
                assert kind == "one" or of == split
                found[of, name] = (
                    example["image"],
                    example["boxes"].tolist(),
                    [source.class_names[label - 1] for label in example["labels"]],
                )
        return found


box = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(21, 60), st.integers(21, 40))
image = st.tuples(st.integers(0, 5), st.lists(box, max_size=3))
names = st.text("ab1 .-", min_size=1, max_size=4).filter(
    lambda name: name == name.strip(" .") and ".." not in name
)


@settings(max_examples=40, deadline=None)
@given(
    train=st.dictionaries(names, image, min_size=1, max_size=3),
    valid=st.dictionaries(names, image, min_size=1, max_size=3),
    chosen=st.lists(st.sampled_from(layouts), min_size=3, max_size=3),
)
def test_every_layout_gives_the_same_examples(train, valid, chosen):
    train["box"] = (0, [(1, 2, 30, 40)])  # a data set needs a box
    valid["box"] = (1, [(2, 2, 30, 40)])
    contents = {"train": train, "valid": valid}
    scale = np.array([40, 60, 40, 60], np.float32)
    expected = {
        (split, name): (
            jpeg(seed=seed),
            [np.float32(np.array(b)[[1, 0, 3, 2]] / scale).tolist() for b in boxes],
            [f"kind{n % 3}" for n in range(len(boxes))],
        )
        for split, images in contents.items()
        for name, (seed, boxes) in images.items()
    }
    for kind, patterns in chosen:
        found = examples_of(contents, kind, patterns)
        assert found.keys() == expected.keys()
        for key, (data, boxes, kinds) in expected.items():
            assert found[key][0] == data
            assert found[key][2] == kinds
            np.testing.assert_allclose(found[key][1], boxes, rtol=1e-6)


# Exporters: the files and the elements that each writes.

SIZE = "<size><width>60</width><height>40</height><depth>3</depth></size>"
BOX = "<xmin>10</xmin><ymin>5</ymin><xmax>30</xmax><ymax>25</ymax>"
EXPORTERS = {
    "devkit": (
        (
            "JPEGImages/a.jpg",
            "Annotations/a.xml",
            ("ImageSets/Main/train.txt", ["a"]),
            ("ImageSets/Main/cell_train.txt", ["a  1"]),
            "SegmentationClass/a.png",
        ),
        "<source><database>The VOC2012 Database</database><annotation>PASCAL VOC2012</annotation>"
        f"<image>flickr</image></source>{SIZE}<segmented>1</segmented>"
        "<object><name>cell</name><pose>Left</pose><truncated>1</truncated><difficult>0</difficult>"
        f"<bndbox>{BOX}</bndbox><part><name>head</name><bndbox>{BOX}</bndbox></part></object>",
    ),
    "LabelImg": (
        ("a.jpg", "a.xml", "b.jpg", ("classes.txt", ["cell"])),
        "<folder>Set</folder><filename>a.jpg</filename><path>/home/me/Set/a.jpg</path>"
        f"<source><database>Unknown</database></source>{SIZE}<segmented>0</segmented>"
        "<object><name>cell</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>0</difficult><bndbox>{BOX}</bndbox></object>",
    ),
    "Roboflow": (
        ("train/a.jpg", "train/a.xml", ("README.dataset.txt", ["x"]), ("README.roboflow.txt", [])),
        "<folder></folder><filename>a.jpg</filename><path>a.jpg</path><source><database>"
        f"roboflow.com</database></source>{SIZE}<segmented>0</segmented>"
        "<object><name>cell</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0"
        "</difficult><occluded>0</occluded><bndbox><xmin>10</xmin><xmax>30</xmax><ymin>5</ymin>"
        "<ymax>25</ymax></bndbox><polygon><x1>10</x1><y1>5</y1></polygon></object>",
    ),
    "CVAT": (
        (
            "JPEGImages/cam1/a.jpg",
            "Annotations/cam1/a.xml",
            ("labelmap.txt", ["cell:1,2,3::"]),
            ("ImageSets/Main/default.txt", ["cam1/a"]),
            ("ImageSets/Main/cell_default.txt", ["cam1/a 1"]),
        ),
        "<folder></folder><filename>cam1/a.jpg</filename><source><database>Unknown</database>"
        f"<annotation>Unknown</annotation><image>Unknown</image></source>{SIZE}<segmented>0"
        "</segmented><object><name>cell</name><truncated>0</truncated><difficult>0</difficult>"
        f"<occluded>0</occluded><bndbox>{BOX}</bndbox><attributes><attribute><name>rotation</name>"
        "<value>0.0</value></attribute></attributes></object>",
    ),
    "Label Studio": (
        ("images/a.jpg", "Annotations/a.xml"),
        "<folder>images</folder><filename>a</filename><source><database>MyDatabase</database>"
        "<annotation>COCO2017</annotation><image>flickr</image><flickrid>NULL</flickrid></source>"
        f"<owner><flickrid>NULL</flickrid><name>Label Studio</name></owner>{SIZE}<segmented>0"
        "</segmented><object><name>cell</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>0</difficult><bndbox>{BOX}</bndbox></object>",
    ),
    "Oxford pets": (
        (
            "images/a.jpg",
            "annotations/xmls/a.xml",
            "annotations/trimaps/a.png",
            "annotations/trimaps/._a.png",
            ("annotations/trainval.txt", ["a 1 1 1"]),
        ),
        f"{SIZE}<object><name>cell</name><bndbox>{BOX}</bndbox></object>",
    ),
    "other case": (
        ("IMAGES/a.JPG", "Annotation/a.XML"),
        f"<Size>{SIZE[6:-7].title()}</Size><Object><Name>cell</Name>"
        f"<BndBox>{BOX.title()}</BndBox></Object>",
    ),
}


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_exports_are_read(exporter, root, prepare, tmp_path):
    files, body = EXPORTERS[exporter]
    write(root, *files, xml=f"<annotation>{body}</annotation>")
    report = prepare()
    assert report.images == {"train": 1}
    assert report.class_names == ("cell",)
    kinds = {"other case": [Kind.TAGS], "LabelImg": [Kind.NO_ANNOTATION]}  # b.jpg has no .xml
    assert [d.kind for d in report.defects] == kinds.get(exporter, [])
    example = DetectionSource("voc_folder/mine:train", tmp_path / "data")[0]
    np.testing.assert_allclose(example["boxes"], [[5 / 40, 10 / 60, 25 / 40, 30 / 60]], rtol=1e-6)
    folder = {"CVAT": "cam1/", "Roboflow": "train/"}.get(exporter, "")
    assert example["image_id"] == f"{folder}a"


# Lists.


def test_ids_keep_their_folder(root, prepare, tmp_path):
    for name in ("cam1/f1", "cam1/f2", "cam2/f1"):
        write(root, f"JPEGImages/{name}.jpg", f"Annotations/{name}.xml")
    write(root, "JPEGImages/cam3/f9.jpg")
    write(root, ("ImageSets/Main/train.txt", ["cam1/f1", "cam2/f1"]))
    write(root, ("ImageSets/Main/val.txt", ["JPEGImages/cam1/f2.jpg", "cam3/f1"]))
    report = prepare()
    assert report.images == {"train": 2, "val": 1}
    assert [(d.kind, d.file, d.reason[:7]) for d in report.defects] == [
        (Kind.NO_IMAGE, "ImageSets/Main/val.txt", "cam3/f1")
    ]
    assert ids(tmp_path) == ["cam1/f1", "cam2/f1"]
    source = DetectionSource("voc_folder/mine:train", tmp_path / "data")
    assert [source[i]["filename"] for i in (0, 1)] == ["cam1/f1.jpg", "cam2/f1.jpg"]


def test_a_folder_that_only_one_line_has_is_not_left_out(root, prepare, tmp_path):
    write(root, *(f"{p}{i}{s}" for i in ("f1", "f2") for p, s in VOC_FILES))
    write(root, ("ImageSets/Main/train.txt", ["f2", "cam3/f1", "cam4/f1.jpg"]))
    report = prepare()
    assert [d.kind for d in report.defects] == [Kind.NO_IMAGE] * 2
    assert ids(tmp_path) == ["f2"]


@pytest.mark.parametrize("number", ["", " 1"])
def test_lists_of_classes_are_passed_over(number, root, prepare, tmp_path):
    names = [f"photo{number}", f"photo{number and ' 2'}x"]
    write(root, *(f"{p}{i}{s}" for i in names for p, s in VOC_FILES))
    for kind in ("cat", "dog"):
        write(root, (f"ImageSets/Main/{kind}_train.txt", [f"{names[0]} 1", f"{names[1]}  -1"]))
    report = prepare()
    assert report.images == {"train": 2}
    assert report.defects == []
    assert any(
        "are passed over: 2, such as ImageSets/Main/cat_train.txt" in note for note in report.notes
    )
    assert ids(tmp_path) == sorted(names)


def test_a_list_of_names_that_end_in_a_number_is_plain(root, prepare, tmp_path):
    names = ["photo", "photo 1", "photo 0", "photo 1 1"]
    write(root, *(f"{p}{i}{s}" for i in names for p, s in VOC_FILES))
    write(root, ("ImageSets/Main/train.txt", names[1:3]), ("ImageSets/Main/val.txt", names[3:]))
    write(root, ("ImageSets/Main/cat_train.txt", ["photo 1 1", "photo 0 -1"]))
    report = prepare()
    assert report.images == {"train": 2, "val": 1}
    assert ids(tmp_path) == ["photo 1", "photo 0"]


def test_the_default_list_of_cvat_is_the_split_train(root, prepare, tmp_path):
    write(root, *(f"{p}{i}{s}" for i in ("a", "b") for p, s in VOC_FILES))
    write(root, ("ImageSets/Main/default.txt", ["b", "a"]), ("labelmap.txt", ["# label:color"]))
    write(root, ("ImageSets/Main/cell_default.txt", ["a 1", "b -1"]))
    write(root, ("ImageSets/Layout/default.txt", ["a 1"]))
    report = prepare()
    assert report.images == {"train": 2}
    assert any("default.txt is the only list" in note for note in report.notes)
    assert ids(tmp_path) == ["b", "a"]
    named = prepare_voc_folder(root, tmp_path / "data", "named", splits=["default"])
    assert named.images == {"default": 2}
    write(root, ("ImageSets/Main/val.txt", ["a"]))
    both = prepare_voc_folder(root, tmp_path / "data", "both")
    assert both.images == {"default": 2, "val": 1}


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_in_any_encoding(encoding, end, root, prepare, tmp_path):
    names = ["one", "zwölf 2"]
    write(root, *(f"{p}{i}{s}" for i in names for p, s in VOC_FILES))
    place = root / "ImageSets" / "Main" / "train.txt"
    place.parent.mkdir(parents=True)
    place.write_bytes(end.join([*names, ""]).encode(encoding))
    report = prepare()
    assert report.defects == []
    assert ids(tmp_path) == names


@settings(max_examples=300)
@given(st.lists(st.text(min_size=1).map(lambda line: line.replace("\0", "")), min_size=1))
def test_utf_8_is_not_taken_for_utf_16(lines):
    text = "\n".join(lines).lstrip("\ufeff").encode("utf-8", "replace").decode()
    assert decode_text(text.encode()) == text


# Hidden files, links and flags.


def test_hidden_companions_are_passed_over_with_one_note(root, prepare, tmp_path):
    write(root, "JPEGImages/a.jpg", "Annotations/a.xml", ("ImageSets/Main/train.txt", ["a"]))
    write(root, ("ImageSets/Main/._train.txt", ["junk"]), "__MACOSX/JPEGImages/._a.jpg")
    write(root, "JPEGImages/._a.jpg", "Annotations/._a.xml", "JPEGImages/Thumbs.db", xml="junk")
    write(root, "JPEGImages/.DS_Store", ".DS_Store", "JPEGImages/.ipynb_checkpoints/a-1.jpg")
    report = prepare()
    assert report.images == {"train": 1}
    assert report.defects == []
    (note,) = [note for note in report.notes if "hidden" in note]
    assert note.endswith("are passed over: 7, such as .DS_Store")
    for name in ("JPEGImages/._a.jpg", "Annotations/._a.xml"):
        (root / name).unlink()
    shutil.rmtree(root / "ImageSets")
    assert prepare_voc_folder(root, tmp_path / "data", "other").defects == []


def test_hidden_companions_beside_images(root, prepare):
    write(root, "train/a.jpg", "train/a.xml", "train/._a.jpg", "train/._a.xml", "._x.jpg")
    write(root, "__MACOSX/train/a.jpg", "__MACOSX/train/a.xml")
    report = prepare()
    assert report.images == {"train": 1}
    assert report.defects == []
    assert any("passed over: 4," in note for note in report.notes)


def test_a_linked_folder_is_read_if_it_is_named(root, prepare, tmp_path):
    write(root, "Annotations/a.xml", "Annotations/b.xml")
    write(tmp_path / "disk", "a.jpg")
    write(tmp_path, "secret.jpg")
    (tmp_path / "disk" / "b.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "JPEGImages").symlink_to(tmp_path / "disk")
    message = "JPEGImages is a link to something outside .*Set: if that may be read, name it with"
    with pytest.raises(UserError, match=message):
        prepare()
    with pytest.raises(UserError, match=r"is a link .* name it with `prepare voc --images=JPEG"):
        prepare(annotations="Annotations")
    report = prepare(images="JPEGImages")
    assert [(d.kind, d.file) for d in report.defects] == [(Kind.OUT_OF_FOLDER, "JPEGImages/b.jpg")]
    assert ids(tmp_path) == ["a"]


def test_links_to_folders_inside_are_followed_and_others_are_named(root, prepare, tmp_path):
    write(root, "raw/cam1/a.jpg", "Annotations/cam1/a.xml", "Annotations/cam2/b.xml")
    write(tmp_path / "elsewhere", "b.jpg")
    (root / "JPEGImages").mkdir()
    (root / "JPEGImages" / "cam1").symlink_to("../raw/cam1")
    (root / "JPEGImages" / "cam2").symlink_to(tmp_path / "elsewhere")
    (root / "JPEGImages" / "loop").symlink_to(".")
    (root / "JPEGImages" / "nowhere").symlink_to("gone")
    report = prepare()
    assert ids(tmp_path) == ["cam1/a"]
    assert [(d.kind, d.file) for d in report.defects] == [
        (Kind.OUT_OF_FOLDER, "JPEGImages/cam2"),
        (Kind.NO_IMAGE, "Annotations/cam2/b.xml"),
    ]


@pytest.mark.parametrize(
    "flags",
    [
        {"images": "pictures", "annotations": "xml files"},
        {"images": "pictures/", "annotations": "./xml files"},
        {"images": "{root}/pictures", "annotations": "{root}/xml files"},
    ],
)
def test_flags_name_the_folders(flags, root, prepare, tmp_path, capsys):
    write(root, "pictures/a.jpg", "xml files/a.xml", "pictures/cam/b.jpg", "xml files/cam/b.xml")
    write(root, ("ImageSets/Main/train.txt", ["a", "cam/b"]))
    flags = {name: value.format(root=root) for name, value in flags.items()}
    report = prepare(**flags)
    assert report.defects == []
    assert ids(tmp_path) == ["a", "cam/b"]
    assert "images are read from pictures, annotations from xml files" in report.notes
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    data = f"--data_dir={tmp_path / 'data'}"
    tool.main(["prepare", "voc", f"--folder={root}", "--name=mine", data, *arguments])
    assert "already prepared" in capsys.readouterr().out


def test_one_flag_is_enough_where_the_other_folder_is_known(root, prepare, tmp_path):
    write(root, "pictures/a.jpg", "Annotations/a.xml", "both/b.jpg", "both/b.xml")
    assert prepare(images="pictures").images == {"train": 1}
    shutil.rmtree(root / "Annotations")
    other = prepare_voc_folder(root, tmp_path / "data", "other", annotations="both")
    assert other.images == {"train": 1}
    with pytest.raises(UserError, match=r"1 × image without annotation .*no pictures/a\.xml"):
        prepare_voc_folder(root, tmp_path / "data", "third", images="pictures")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("nowhere", r"^--images=nowhere: there is no such folder in .*Set$"),
        ("a.txt", r"^--images=a\.txt: there is no such folder in .*Set$"),
        ("..", r"^--images=\.\. is outside .*Set: name a folder inside it$"),
        ("/etc", r"^--images=/etc is outside .*Set: name a folder inside it$"),
    ],
)
def test_wrong_flags_are_one_sentence(flag, message, root, prepare):
    write(root, "JPEGImages/a.jpg", "Annotations/a.xml", ("a.txt", ()))
    with pytest.raises(UserError, match=message):
        prepare(images=flag)


# Layouts that are not understood.


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            [*(f"pictures/{i}.jpg" for i in range(3)), "xml/0.xml", "xml/1.xml"],
            ["found 3 .jpg in pictures/ and 2 .xml in xml/;", "prepare voc --images=FOLDER"],
        ),
        (
            ["p/train/a.jpg", "p/val/b.jpg", "my xml/train/a.xml", "c.jpg"],
            ["in p/train/", "1 .xml in my xml/train/"],
        ),
        (["images/a.jpg", ("labels/a.txt", ["0 1 1 1 1"])], ["1 .jpg in images/", "in labels/"]),
        (["images/a.jpg", "annotations/train.json"], ["use `prepare coco`"]),
        (["a.jpg", "b.xml"], ["in the folder itself", "each image with its .xml file beside it"]),
        ([("notes.csv", [])], ["found 1 .csv in the folder itself", "--images=FOLDER"]),
    ],
)
def test_a_layout_that_is_not_understood_says_what_was_found(files, words, root, prepare):
    write(root, *files)
    with pytest.raises(UserError) as error:
        prepare()
    text = str(error.value)
    assert text.startswith(f"{root} is not in VOC layout: found ")
    assert "expected JPEGImages/ and Annotations/" in text
    assert "\n" not in text
    for word in words:
        assert word in text


def test_an_empty_folder_says_so(root, prepare):
    root.mkdir()
    with pytest.raises(UserError, match=r"found no images and no \.xml files; expected"):
        prepare()


@pytest.mark.parametrize(
    ("files", "inside"),
    [
        (["VOC2007/JPEGImages/a.jpg", "VOC2007/Annotations/a.xml"], ["VOC2007"]),
        (
            [f"k/VOC{y}/{f}" for y in (2007, 2012) for f in ("images/a.jpg", "labels/a.xml")],
            ["k/VOC2007", "k/VOC2012"],
        ),
        (["x.v1.voc/train/a.jpg", "x.v1.voc/train/a.xml", "x.v1.voc/valid/b.jpg"], ["x.v1.voc"]),
        (["s/a.jpg", "s/a.xml", ("s/ImageSets/Main/val.txt", ["a"])], ["s"]),
    ],
)
def test_a_data_set_further_inside_is_named(files, inside, root, prepare):
    write(root, *files)
    with pytest.raises(UserError) as error:
        prepare()
    assert str(error.value).endswith(
        f"did you mean {' or '.join(str(root / name) for name in inside)}?"
    )


# Objects that are not where VOC has them.


def test_objects_in_other_places_are_counted_and_named(root, prepare, tmp_path, capsys):
    two = obj().replace("</bndbox>", "</bndbox><bndbox><xmin>1</xmin></bndbox>")
    texts = {
        "a": XML,
        "b": annotation(f"<objects>{obj()}</objects>"),
        "c": annotation(obj().replace("object>", "Object>")),
        "d": annotation(obj(), two),
        "e": annotation(),
        "f": annotation(obj().replace("bndbox>", "robndbox>")),
    }
    for name, text in texts.items():
        write(root, f"JPEGImages/{name}.jpg")
        write(root, f"Annotations/{name}.xml", xml=text)
    with pytest.raises(UserError, match="has 4 defects, which --strict does not allow"):
        prepare(strict=True)
    report = prepare()
    assert [(d.kind, d.file, d.reason) for d in report.defects] == [
        (Kind.TAGS, "Annotations/b.xml", "<object> inside <objects>"),
        (Kind.TAGS, "Annotations/c.xml", "<Object> for <object>"),
        (Kind.MISPLACED, "Annotations/d.xml", "object 2 (cell) has 2 <bndbox>"),
        (Kind.MISPLACED, "Annotations/f.xml", "object 1 (cell) has <robndbox> and no <bndbox>"),
    ]
    assert report.images == {"train": 4}
    assert report.left_out == {"train": 2}
    assert report.boxless == {"train": 1}
    source = DetectionSource("voc_folder/mine:train", tmp_path / "data")
    assert [len(source[i]["boxes"]) for i in range(4)] == [1, 1, 1, 0]
    assert "2 × annotation whose objects are not where VOC has them" in capsys.readouterr().out


def test_flags_that_cannot_be_read_are_repaired(root, prepare):
    flags = (
        obj(extra="<truncated>0.0597</truncated>"),
        obj(extra="<truncated>Unspecified</truncated>"),
    )
    write(root, "a.jpg", "a.xml", xml=annotation(*flags))
    assert prepare().counts() == {Kind.FLAG: 2}


# Training on a folder.


def test_config_data_folder_takes_the_layouts(root, tmp_path):
    write(
        root,
        *(f"{s}/{s}{n}{e}" for s in ("train", "valid") for n in "ab" for e in (".jpg", ".xml")),
    )
    settings = defaults.get_config().data
    settings.folder, settings.dir = str(root), str(tmp_path / "data")
    settings.train, settings.eval = "train", "valid"
    assert [open_split(settings, "train").image_id(i) for i in (0, 1)] == [
        "train/traina",
        "train/trainb",
    ]
    assert len(open_split(settings, "eval")) == 2


# Fingerprints.


def test_files_in_subfolders_change_the_fingerprint_only_if_they_are_used(root, prepare):
    write(root, *(f"{p}a{s}" for p, s in VOC_FILES), ("ImageSets/Main/train.txt", ["a"]))
    report = prepare()
    write(root, "JPEGImages/old/b.jpg", "Annotations/old/b.xml")
    assert prepare() == report
    write(root, "JPEGImages/c.jpg")
    with pytest.raises(UserError, match="delete that directory"):
        prepare()


def test_the_fingerprint_of_vocs_layout_stays_the_same(root):
    write(root, *(f"{p}a{s}" for p, s in VOC_FILES), image=b"", xml=XML)
    write(root, ("ImageSets/Main/train.txt", ["a"]), ("ImageSets/Main/cat_train.txt", ["a 1"]))
    listing = list_folder(root, None)
    assert (
        fingerprint(listing, None, None)
        == "04b645415f682b62e8d416304a097a73f82d26aafb66900ec19f20faa1c23697"
    )
    assert (
        fingerprint(list_folder(root, ["train"]), ["x"], ["train"])
        == "08b1a241451481423a749ee05dcf6bdd67f776edfb539ca7300d053c02b6b3a6"
    )


# Sub-folders on one side only.


@pytest.mark.parametrize("deep", ["images", "annotations"])
def test_sub_folders_of_one_kind_are_matched_by_name(deep, root, prepare, tmp_path):
    for n in range(4):
        below = f"cam{n % 2}/" if deep == "annotations" else f"{['train', 'val'][n % 2]}/"
        image, note = ("", below) if deep == "annotations" else (below, "")
        write(root, f"JPEGImages/{image}f{n}.jpg", f"Annotations/{note}f{n}.xml")
    if deep == "annotations":
        write(root, ("ImageSets/Main/train.txt", ["f0", "f1"]))
        write(root, ("ImageSets/Main/val.txt", ["f2", "f3.jpg"]))
    report = prepare()
    assert report.images == {"train": 2, "val": 2} and not report.defects
    first = ["f0", "f1"] if deep == "annotations" else ["train/f0", "train/f2"]
    assert ids(tmp_path) == first
    (note,) = [note for note in report.notes if "matched by name" in note]
    assert note.startswith("only one of image and annotation is in a sub-folder")
    truth = read_ground_truth(root, "train")
    assert sorted(truth.objects) == first and note in truth.notes


@pytest.mark.parametrize(
    ("image", "files"),
    [
        ("cam1/f", ["JPEGImages/cam1/f.jpg", "Annotations/cam2/f.xml"]),  # another camera's
        ("f", ["JPEGImages/f.jpg", "Annotations/cam1/f.xml", "Annotations/cam2/f.xml"]),
        ("cam1/f", ["JPEGImages/cam1/f.jpg", "JPEGImages/cam2/f.jpg", "Annotations/f.xml"]),
    ],
)
def test_files_that_may_belong_to_others_are_not_matched(image, files, root, prepare, tmp_path):
    write(root, "JPEGImages/g.jpg", "Annotations/g.xml", *files)
    report = prepare()
    assert ids(tmp_path) == ["g"]
    reasons = [d.file for d in report.defects if d.kind is Kind.NO_ANNOTATION]
    assert f"JPEGImages/{image}.jpg" in reasons
