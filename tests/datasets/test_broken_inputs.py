"""Broken annotations, lists and paths: each gives a one-line error or a counted repair.

Broken images are in test_broken_images.py, broken prepared data in test_broken_prepared.py;
together they are well over 200 inputs.
"""

import copy
import json
import os
import random

import pytest

from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.datasets.objects import Kind
from tests.datasets.broken import (
    COCO,
    IDS,
    PICTURES,
    XML,
    XMLS,
    check_coco,
    check_voc,
    make_coco,
    make_voc,
    mutated,
)


@pytest.fixture
def voc(tmp_path):
    return make_voc(tmp_path)


@pytest.fixture
def coco(tmp_path):
    return make_coco(tmp_path)


@pytest.mark.parametrize("name", XMLS)
def test_xml(name, voc):
    (voc / "Annotations" / "two.xml").write_bytes(XMLS[name])
    check_voc(voc)


@pytest.mark.parametrize("seed", range(40))
def test_mutated_xml(seed, voc):
    (voc / "Annotations" / "two.xml").write_bytes(mutated(XML, random.Random(seed)))
    report = check_voc(voc)
    assert report.images["train"] >= 3


VALUES = (
    None,
    True,
    -1,
    0,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    -0.5,
    "",
    "12",
    "\0",
    "a\nb",
    "../../x",
    "\ud800",
    [],
    [1],
    {},
    {"id": 1},
    [[]],
    "x" * 5000,
)


def places(tree, path=()):
    """Paths of all values in a JSON tree."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in children:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


def injured(rng):
    """The COCO tree with one or two values replaced, removed or repeated."""
    tree = copy.deepcopy(COCO)
    for _ in range(rng.randint(1, 2)):
        *parents, key = rng.choice(list(places(tree)))
        holder = tree
        for parent in parents:
            holder = holder[parent]
        kind = rng.randrange(4)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[key] = rng.choice(VALUES)
    return tree


def image_count(tree):
    images = tree.get("images") if isinstance(tree, dict) else None
    return len(images) if isinstance(images, list) else 0


def write_json(root, tree):
    (root / "train.json").write_text(json.dumps(tree))
    return image_count(tree)


@pytest.mark.parametrize("seed", range(60))
def test_injured_json(seed, coco):
    check_coco(coco, write_json(coco, injured(random.Random(seed))))


@pytest.mark.parametrize("seed", range(25))
def test_mutated_json(seed, coco):
    data = mutated(json.dumps(COCO).encode(), random.Random(seed))
    (coco / "train.json").write_bytes(data)
    try:
        tree = json.loads(data.decode("utf-8", "surrogateescape"))
    except ValueError:
        tree = None
    check_coco(coco, image_count(tree))


FIELDS = ("bbox", "category_id", "image_id", "area", "iscrowd", "id")


@pytest.mark.parametrize("field", FIELDS)
def test_every_value_in_an_annotation(field, coco):
    tree = copy.deepcopy(COCO)
    template = tree["annotations"][0]
    tree["annotations"] += [{**template, "id": 100 + i, field: v} for i, v in enumerate(VALUES)]
    report = check_coco(coco, write_json(coco, tree))
    assert report.images == {"train": 4}
    assert sum(report.boxes.values()) >= len(COCO["annotations"])
    kept = sum(report.boxes.values()) - len(COCO["annotations"])
    assert kept + sum("left out" in kind for kind in map(str, report.counts())) > 0
    left = sum(n for kind, n in report.counts().items() if "left out" in kind)
    assert kept + left == len(VALUES)


@pytest.mark.parametrize("field", ["id", "file_name", "width", "height"])
def test_every_value_in_an_image(field, coco):
    tree = copy.deepcopy(COCO)
    tree["images"] += [
        {"id": 100 + i, "file_name": "one.jpg", field: v} for i, v in enumerate(VALUES)
    ]
    report = check_coco(coco, write_json(coco, tree))
    assert report.images["train"] >= 4


JSONS = {
    "nested lists": b"[" * 1_000_000,
    "nested objects": b'{"images":' * 300_000,
    "nested segmentation": json.dumps(COCO).encode().replace(b"[[3, 2", b"[" * 200_000, 1),
    "many keys": b"{" + b",".join(b'"%d":0' % i for i in range(200_000)) + b"}",
    "cut in a character": json.dumps(COCO, ensure_ascii=False).encode()[:-3],
    "utf-16": json.dumps(COCO).encode("utf-16"),
    "utf-16 cut short": json.dumps(COCO).encode("utf-16")[:-1],
    "utf-8 with a mark": b"\xef\xbb\xbf" + json.dumps(COCO).encode(),
    "latin-1": json.dumps(COCO, ensure_ascii=False).encode("latin-1"),
    "zeros": bytes(4096),
    "xml": XML,
    "picture": PICTURES["one"],
    "results file": json.dumps(COCO["annotations"]).encode(),
    "test set": json.dumps({k: v for k, v in COCO.items() if k != "annotations"}).encode(),
    "trailing comma": json.dumps(COCO).encode()[:-1] + b",}",
    "two documents": json.dumps(COCO).encode() * 2,
}


@pytest.mark.parametrize("name", JSONS)
def test_json(name, coco):
    (coco / "train.json").write_bytes(JSONS[name])
    check_coco(coco)


PATHS = (
    "../secret",
    "../../secret",
    "/etc/passwd",
    "~/secret",
    "..",
    ".",
    "./one",
    "one/",
    "//",
    "a\0b",
    "C:\\secret",
    "..\\secret",
    "\\\\host\\share\\x",
    "%2e%2e/secret",
    "one.jpg",
    "x" * 5000,
    "*",
    "../Set/JPEGImages/one",
    "\x1b[31mred",
    "\u202eeno",
    "file:///etc/passwd",
    "CON",
    "$HOME",
    "-rf",
)


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_paths_in_lists(path, voc):
    (voc.parent / "secret.jpg").write_bytes(PICTURES["one"])
    (voc.parent / "secret.xml").write_bytes(XML)
    (voc / "ImageSets" / "Main" / "train.txt").write_text("\n".join([*IDS, path]))
    report = check_voc(voc)
    assert report.images == {"train": 4}
    means_one = path in ("./one", "one/", "one.jpg")
    assert report.left_out == {"train": int(not means_one)}
    assert report.counts().get(Kind.LISTED_TWICE, 0) == means_one


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_paths_in_json(path, coco):
    (coco.parent / "secret.jpg").write_bytes(PICTURES["one"])
    tree = copy.deepcopy(COCO)
    tree["images"] += [{"id": 99, "file_name": path}, {"id": 100, "file_name": f"{path}.jpg"}]
    report = check_coco(coco, write_json(coco, tree))
    found = DetectionSource("coco_folder/mine:train", coco.parent / "data")
    known = {"one.jpg", "./one.jpg"}
    assert len(found) == 4 + sum(p in known for p in (path, f"{path}.jpg"))
    assert report.left_out["train"] == 6 - len(found)


@pytest.mark.parametrize("place", ["JPEGImages/two.jpg", "Annotations/two.xml"])
@pytest.mark.parametrize("target", ["/dev/zero", "/etc/passwd", "../../secret", "two", "nowhere"])
def test_links(place, target, voc):
    (voc.parent / "secret").write_bytes(PICTURES["one"] if "JPEG" in place else XML)
    (voc / place).unlink()
    (voc / place).symlink_to(target)
    report = check_voc(voc)
    assert report.left_out == {"train": 1}


@pytest.mark.parametrize("place", ["JPEGImages/two.jpg", "Annotations/two.xml"])
def test_pipes_and_folders(place, voc):
    (voc / place).unlink()
    os.mkfifo(voc / place)
    (voc / "JPEGImages" / "three.jpg").unlink()
    (voc / "JPEGImages" / "three.jpg").mkdir()
    assert check_voc(voc).left_out == {"train": 2}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 100,
        b"\xff\xfe",
        "\n".join(IDS).encode("utf-16")[:-1],
        b"\xef\xbb\xbf",
        b"one 1\ntwo -1\n",
        b"one  two\n",
        PICTURES["one"],
        b"x" * 100_000,
        b"one\r\ntwo\r\n",
    ],
    ids=range(10),
)
def test_lists(data, voc):
    (voc / "ImageSets" / "Main" / "val.txt").write_bytes(data)
    report = check_voc(voc)
    assert report.images["train"] == 4
