"""Intact inputs to damage, and checks of the outcome: a one-line error or a counted repair."""

import contextlib
import io
import json
import signal

import cv2
import numpy as np
from PIL import Image

from scratchdet_jax.data.images import decode_to_canvas
from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.datasets.folders import CocoSplit, prepare_coco_folder, prepare_voc_folder
from scratchdet_jax.datasets.objects import Kind
from scratchdet_jax.errors import UserError

IDS = ("one", "two", "three", "four")  # "two" gets damaged
SECONDS = 20  # for one input

# Kinds of defect that lose an image.
LOSSES = {
    Kind.NO_IMAGE,
    Kind.BROKEN_IMAGE,
    Kind.OUT_OF_FOLDER,
    Kind.NO_ANNOTATION,
    Kind.BROKEN_ANNOTATION,
    Kind.MISPLACED,
    Kind.BROKEN_ENTRY,
    Kind.CONFLICT,
}


def encoded(suffix=".jpg", seed=0, size=(24, 32), **options):
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    pixels = cv2.GaussianBlur(pixels, (5, 5), 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, Image.registered_extensions()[suffix], **options)
    return buffer.getvalue()


XML = (
    '<?xml version="1.0" encoding="utf-8"?>\n<annotation>\n <filename>two.jpg</filename>\n'
    " <size><width>32</width><height>24</height><depth>3</depth></size>\n"
    " <object><name>cell</name><difficult>0</difficult><truncated>1</truncated>\n"
    "  <bndbox><xmin>3</xmin><ymin>2</ymin><xmax>20</xmax><ymax>18</ymax></bndbox></object>\n"
    " <object><name>Blutkörper</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax>"
    "<ymax>9</ymax></bndbox></object>\n</annotation>\n"
).encode()

COCO = {
    "images": [
        {"id": 10 + i, "file_name": f"{name}.jpg", "width": 32, "height": 24}
        for i, name in enumerate(IDS)
    ],
    "annotations": [
        {
            "id": i,
            "image_id": 10 + i // 2,
            "category_id": 2 + i % 2,
            "bbox": [3, 2, 17, 16],
            "area": 200.5,
            "iscrowd": 0,
            "segmentation": [[3, 2, 20, 2, 20, 18]],
        }
        for i in range(8)
    ],
    "categories": [{"id": 2, "name": "cell"}, {"id": 3, "name": "Blutkörper"}],
}

PICTURES = {name: encoded(seed=i) for i, name in enumerate(IDS)}


def make_voc(folder):
    """An intact folder in VOC layout."""
    root = folder / "Set"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    for name in IDS:
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(PICTURES[name])
        (root / "Annotations" / f"{name}.xml").write_bytes(XML)
    (root / "ImageSets" / "Main" / "train.txt").write_text("\n".join(IDS))
    return root


def make_coco(folder):
    """An intact COCO file and its images."""
    root = folder / "Set"
    (root / "images").mkdir(parents=True)
    for name in IDS:
        (root / "images" / f"{name}.jpg").write_bytes(PICTURES[name])
    (root / "train.json").write_text(json.dumps(COCO))
    return root


@contextlib.contextmanager
def time_limit():
    """Stops whatever hangs."""

    def stop(*_):
        raise TimeoutError(f"not done after {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def one_sentence(error, *names):
    """The message of a UserError, which must be one line that names a file."""
    text = str(error)
    assert text
    assert "\n" not in text
    assert len(text) < 1500
    assert any(name in text for name in names), text
    return text


def check_voc(root):
    """Prepares; every listed image is prepared or named, or there is a one-line error."""
    data_dir = root.parent / "data"
    try:
        with time_limit():
            report = prepare_voc_folder(root, data_dir, "mine")
    except UserError as error:
        return one_sentence(error, str(root), "JPEGImages", "Annotations", "ImageSets")
    return check_outcome(report, "voc_folder/mine", data_dir)


def check_coco(root, given=4):
    """Like check_voc; `given` is the number of entries in the list of images."""
    data_dir = root.parent / "data"
    split = CocoSplit("train", root / "train.json", root / "images")
    try:
        with time_limit():
            report = prepare_coco_folder([split], data_dir, "mine")
    except UserError as error:
        return one_sentence(error, "train.json")
    repeated = sum(defect.kind == Kind.LISTED_TWICE for defect in report.defects)
    assert sum(report.images.values()) + sum(report.left_out.values()) + repeated == given
    return check_outcome(report, "coco_folder/mine", data_dir)


def check_outcome(report, name, data_dir):
    """Prepared images can be read and decoded, and the others are named."""
    assert set(report.images) <= set(report.left_out)
    lost = [defect for defect in report.defects if defect.kind in LOSSES]
    assert bool(lost) == bool(sum(report.left_out.values()))
    assert all("\n" not in defect.reason + defect.file for defect in report.defects)
    for split, count in report.images.items():
        source = DetectionSource(f"{name}:{split}", data_dir)
        assert len(source) == count
        for i in range(count):
            example = source[i]
            image, _ = decode_to_canvas(example["image"], (64, 64), example["orientation"])
            assert image.dtype == np.uint8
            assert np.isfinite(example["boxes"]).all()
        assert not source.left_out_line()  # the reader does not leave out any more boxes
    return report


def mutated(data, rng):
    """Bytes with one to three random mutations."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at, length = rng.randrange(len(data) + 1), rng.randint(1, 1 + len(data) // 4)
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.randint(1, 20))
        elif kind == 3:
            data[at:at] = data[at : at + length]  # repeated
        elif kind == 4:
            del data[at:]
        else:
            other = rng.randrange(len(data) + 1)
            data[at:at] = data[other : other + length]  # moved
    return bytes(data)


LAUGHS = "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(20))
XMLS = {
    "empty": b"",
    "zeros": bytes(1000),
    "blank": b" \n ",
    "only the declaration": XML.split(b"\n")[0],
    "billion laughs": (
        f'<!DOCTYPE x [<!ENTITY a "ha">{LAUGHS}]><annotation>&u;</annotation>'.encode()
    ),
    "quadratic blowup": (
        f'<!DOCTYPE x [<!ENTITY a "{"a" * 50_000}">]><annotation>{"&a;" * 50_000}</annotation>'
    ).encode(),
    "external entity": (
        b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>'
    ),
    "parameter entity": b'<!DOCTYPE x [<!ENTITY % a SYSTEM "/etc/passwd"> %a;]><annotation/>',
    "external document type": b'<!DOCTYPE annotation SYSTEM "http://localhost/x.dtd">' + XML[39:],
    "undefined entity": XML.replace(b"cell", b"&cell;"),
    "nested": b"<annotation>" + b"<object>" * 300_000,
    "nested and closed": b"<annotation>" + b"<a>" * 90_000 + b"</a>" * 90_000 + b"</annotation>",
    "large": XML + b" " * (17 << 20),
    "many objects": XML.replace(b"</annotation>", b"<object/>" * 50_000 + b"</annotation>"),
    "utf-16": XML.decode().replace("utf-8", "utf-16").encode("utf-16"),
    "utf-16 that says utf-8": XML.decode().encode("utf-16"),
    "utf-8 with a mark": b"\xef\xbb\xbf" + XML,
    "latin-1 that says utf-8": XML.decode().encode("latin-1"),
    "latin-1": XML.decode().replace("utf-8", "latin-1").encode("latin-1"),
    "no such encoding": XML.replace(b"utf-8", b"utf-9"),
    "a codec that is no encoding": XML.replace(b"utf-8", b"zlib"),
    "multi-byte encoding": XML.replace(b"utf-8", b"shift_jis"),
    "punycode": XML.replace(b"utf-8", b"punycode"),
    "other root": XML.replace(b"annotation>", b"annotations>"),
    "namespace": XML.replace(b"<annotation>", b'<annotation xmlns="http://example.org">'),
    "html": b"<!doctype html><html><body>404</body></html>",
    "json": b'{"annotation": {}}',
    "two roots": XML + b"<annotation/>",
    "no size": XML.replace(b"<width>32</width>", b""),
    "size of zero": XML.replace(b">32<", b">0<"),
    "negative size": XML.replace(b">32<", b">-32<"),
    "endless number": XML.replace(b">32<", b">" + b"9" * 9000 + b"<"),
    "infinite": XML.replace(b">20<", b">inf<"),
    "beyond float": XML.replace(b">20<", b">1e999<"),
    "not a number": XML.replace(b">3<", b">nan<"),
    "comma": XML.replace(b">3<", b">3,5<"),
    "denormal": XML.replace(b">20<", b">3.0000000000000004<"),
    "huge": XML.replace(b">20<", b">1e308<").replace(b">3<", b">-1e308<"),
    "all outside": XML.replace(b">20<", b">-2<").replace(b">3<", b">-9<"),
    "two names": XML.replace(b"<name>cell", b"<name>a</name><name>cell"),
    "lines in a name": XML.replace(b"cell", b"ce\n\tll\xc2\x85x"),
    "very long name": XML.replace(b"cell", b"c" * 100_000),
    "odd flag": XML.replace(b"<difficult>0", b"<difficult>&#x7f;"),
    "nested boxes": XML.replace(b"<xmin>3</xmin>", b"<xmin><xmin>3</xmin></xmin>"),
    "comment instead": XML.replace(b"<bndbox>", b"<!--").replace(b"</bndbox>", b"-->", 1),
    "cdata": XML.replace(b"cell", b"<![CDATA[<cell>]]>"),
}
