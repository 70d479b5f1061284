"""Reads a YOLO data.yaml, lists the files that it names, and checks images and label files."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from reprlib import repr as brief
from typing import Any, NamedTuple

import yaml

from scratchdet_jax.datasets.objects import (
    Broken,
    Checked,
    Contents,
    Defects,
    Item,
    Kind,
    UsableImage,
    check_images,
    fit_box,
    join_splits,
    unreadable,
)
from scratchdet_jax.datasets.untrusted import (
    IMAGE_SUFFIXES,
    MAX_XML_BYTES,
    as_key,
    as_text,
    content_for_hash,
    decode_text,
    file_size,
    printable,
    read_inside,
    read_list,
    read_named,
)
from scratchdet_jax.errors import UserError, plural

_MAX_YAML_BYTES = 4 << 20
# Keys of data.yaml by split; Ultralytics reads the second one too.
_SPLITS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
_NO_LABELS = ("classes.txt", "labels.txt", "notes.txt")  # LabelImg and CVAT write them
# A value beyond this is no share of the image but a pixel; below it a box is only too large.
_FARTHEST = 2.0


class YoloImage(NamedTuple):
    """An image file that a split names.

    Attributes:
        path: the file.
        name: relative to the root, with slashes.
        image_id: the name without its suffix.
        label: the label file, or None if there is none.
    """

    path: Path
    name: str
    image_id: str
    label: Path | None


class YoloListing(NamedTuple):
    """The files of a data set before any of them is opened.

    Attributes:
        root: the resolved folder that contains everything.
        class_names: in the order of the class numbers.
        keypoint_values: how many values of a label line are keypoints; 0 if it is no pose set.
        splits: the images that exist, by split.
        listed: number of different images that were named, by split.
        defects: found so far.
        notes: decisions so far.
    """

    root: Path
    class_names: tuple[str, ...]
    keypoint_values: int
    splits: dict[str, list[YoloImage]]
    listed: dict[str, int]
    defects: Defects
    notes: list[str]


def list_yolo(data: Path, folder: Path | None) -> YoloListing:
    """Reads data.yaml and lists the files of its splits.

    `folder` stands for `path` in it; None: its `path`, or else the folder that it is in. Nothing
    outside is read.

    Raises:
        UserError: a file or folder is missing or unreadable, or the class names are unusable.
    """
    content = _read_yaml(data)
    root = (folder or data.resolve().parent).resolve()
    if not root.is_dir():
        raise UserError(f"the folder {folder} does not exist")
    defects = Defects()
    notes: list[str] = []
    names = _class_names(data, content, defects, notes)
    entries = _split_entries(data, content)
    base = _base(data, root, "" if folder else content.get("path"), entries, notes)
    splits, listed = {}, {}
    for split, texts in entries.items():
        where = f"{as_text(data.name)} ({split})"
        places = []
        for text in texts:
            if place := _find(data, root, base, text):
                places.append(place)
            else:
                defects.note(Kind.EMPTY_SPLIT, where, f"{text!r} does not exist in {base}")
        if places:
            found, missing, hidden = _list_names(root, base, where, places, defects)
            if hidden:
                notes.append(f"{split}: hidden files passed over: {hidden}")
            splits[split] = _images(root, where, found, defects)
            listed[split] = len(found) + missing
    _note_unused_labels(root, splits, defects)
    return YoloListing(root, names, _keypoint_values(content), splits, listed, defects, notes)


def label_path(name: str) -> str:
    """Locates an image's label file: `labels` for the last folder `images`, suffix `.txt`."""
    *folders, file = name.split("/")
    if "images" in folders:
        last = len(folders) - 1 - folders[::-1].index("images")
        folders[last] = "labels"
    return "/".join([*folders, os.path.splitext(file)[0] + ".txt"])


def _read_yaml(data: Path) -> Mapping[str, Any]:
    if data.is_dir():
        raise UserError(f"{data} is a folder: name the file in it, such as {data / 'data.yaml'}")
    content, _ = read_named(data, _MAX_YAML_BYTES, yaml.safe_load, "YAML")
    if not isinstance(content, dict):
        raise UserError(f"{data} is not a YOLO data file: it must have the fields train and names")
    return content


def _class_names(
    data: Path, content: Mapping[str, Any], defects: Defects, notes: list[str]
) -> tuple[str, ...]:
    stated, count = content.get("names"), content.get("nc")
    if stated is None and isinstance(count, int) and count > 0:
        notes.append(
            f"{data.name} has no names: the classes are called class_0 to class_{count - 1}"
        )
        return tuple(f"class_{i}" for i in range(count))
    if isinstance(stated, dict):
        by_number = {int(k) if str(k).isdecimal() else k: value for k, value in stated.items()}
        complete = by_number.keys() == {*range(len(stated))}
        stated = [by_number[number] for number in range(len(stated))] if complete else None
    if (
        not isinstance(stated, list)
        or not stated
        or count not in (None, len(stated))
        or any(isinstance(value, list | dict) for value in stated)
    ):
        raise UserError(
            f"{data} has the class names {printable(brief(content.get('names')))} and nc "
            f"{printable(brief(count))}: names must be a list of nc texts, or a table of them with "
            "the class numbers 0, 1, 2 … as keys"
        )
    names = tuple(_class_name(data, i, value, defects) for i, value in enumerate(stated))
    if repeated := [name for name, number in Counter(names).items() if number > 1]:
        raise UserError(
            f"{data}: several classes have the name {printable(repr(repeated[0]))}: give each its "
            "own (--rename merges classes)"
        )
    return names


def _class_name(data: Path, number: int, value: Any, defects: Defects) -> str:
    text = "" if value is None else str(value)
    name = " ".join(text.encode("utf-8", "replace").decode().split())
    if not name:
        defects.note(Kind.NO_CLASS_NAME, data.name, f"names: class {number}")
        return f"class_{number}"
    if not isinstance(value, str):
        reason = f"names: class {number} is {json.dumps(value, default=str)}, read as {name!r}"
        defects.note(Kind.CATEGORY_NAME, data.name, reason)
    return name


def _split_entries(data: Path, content: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the folders and lists of each split, as written."""
    entries = {}
    for split, keys in _SPLITS.items():
        value = next((content[key] for key in keys if content.get(key)), None)
        if value is None:
            continue
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(
                f"{data}: {split} is {printable(brief(value))}, not a folder, a list of folders or "
                "a .txt file that lists images"
            )
        entries[split] = [text.strip() for text in texts]
    if not entries:
        raise UserError(f"{data} names no images: add train, the folder of the training images")
    return entries


def _keypoint_values(content: Mapping[str, Any]) -> int:
    shape = content.get("kpt_shape")
    if isinstance(shape, list) and len(shape) == 2 and all(isinstance(n, int) for n in shape):
        return shape[0] * shape[1]
    return 0


def _base(
    data: Path, root: Path, stated: Any, entries: Mapping[str, Sequence[str]], notes: list[str]
) -> Path:
    """Returns the folder that the entries are relative to: `path` in the root, or else the root."""
    split, texts = next(iter(entries.items()))
    stated = stated if isinstance(stated, str) else ""
    path = (root / _slashes(stated.strip())).resolve()
    for base in (path, root):
        if base.is_relative_to(root) and any(_find(data, root, base, text) for text in texts):
            if base != path:
                notes.append(f"path {stated} of {data.name} is not used: the splits are in {root}")
            return base
    raise UserError(
        f"{data}: {split} is {printable(repr(texts[0]))}, which does not exist in {root}: name the "
        "folder that contains everything with --folder (nothing outside is read)"
    )


def _find(data: Path, root: Path, base: Path, text: str) -> Path | None:
    """Returns an existing folder or list; None if there is none inside the root."""
    text = _slashes(text)
    inner = text
    while inner.startswith("../"):  # as Roboflow writes: ../train/images beside data.yaml
        inner = inner[3:]
    for path in (base / text, base / inner):
        if path.exists() and path.resolve().is_relative_to(root):
            if path.is_dir() or path.suffix.lower() == ".txt":
                return path.resolve()
            raise UserError(
                f"{data} names {path}, which is neither a folder nor a .txt file that lists images"
            )
    return None


def _slashes(text: str) -> str:
    return text.replace("\\", "/")


def _list_names(
    root: Path, base: Path, where: str, places: Sequence[Path], defects: Defects
) -> tuple[Counter[str], int, int]:
    """Lists the images in folders, and those that files list.

    Returns:
        How often each image is listed, by its name relative to the root; the number of lines that
        name no image; and the number of hidden images, which are passed over.
    """
    names: Counter[str] = Counter()
    missing = hidden = 0
    for place in places:
        for parent, folders, files in os.walk(place):  # nothing if it is a file
            folders.sort()
            images = [f for f in sorted(files) if Path(f).suffix.lower() in IMAGE_SUFFIXES]
            shown = [Path(parent, file) for file in images if not file.startswith(".")]
            names.update(path.relative_to(root).as_posix() for path in shown)
            hidden += len(images) - len(shown)
        for line in [] if place.is_dir() else read_list(place, root):
            name, kind = _listed_name(root, base, place, line)
            if name:
                names[name] += 1
                continue
            missing += 1
            hint = f"is not in {root}" if kind == Kind.OUT_OF_FOLDER else "does not exist"
            defects.note(kind, where, f"{as_text(place.name)}: {as_text(line)} {hint}")
    return names, missing, hidden


def _listed_name(root: Path, base: Path, file: Path, line: str) -> tuple[str, Kind]:
    """Returns the name of an image that a file lists, relative to it or to the base; or why not."""
    starts = [Path("/")] if PureWindowsPath(line).root else [file.parent, base]
    places = [Path(os.path.normpath(start / _slashes(line))) for start in starts]
    inside = [place for place in places if place.is_relative_to(root)]
    found = next((place for place in inside if os.path.lexists(place)), None)
    name = found.relative_to(root).as_posix() if found else ""
    return name, Kind.NO_IMAGE if inside else Kind.OUT_OF_FOLDER


def _images(root: Path, where: str, names: Mapping[str, int], defects: Defects) -> list[YoloImage]:
    """Returns the images, each once; of several with one id the first in IMAGE_SUFFIXES."""
    by_id: dict[str, list[str]] = {}
    for name, count in names.items():
        by_id.setdefault(as_key(os.path.splitext(name)[0]), []).append(name)
        if count > 1:
            defects.note(Kind.LISTED_TWICE, where, f"{as_text(name)} is listed {count} times")
    found = []
    for image_id, same in by_id.items():
        best = min(same, key=lambda n: (_rank(n), n))
        for name in same:
            if name != best:
                defects.note(Kind.TWO_FILES, where, f"{as_text(name)}: {as_text(best)} is used")
        # In the folder labels, or else beside the image.
        labels = [root / label_path(best), root / (os.path.splitext(best)[0] + ".txt")]
        label = next((path for path in labels if os.path.lexists(path)), None)
        found.append(YoloImage(root / best, as_text(best), image_id, label))
    return found


def _rank(name: str) -> int:
    suffix = os.path.splitext(name)[1].lower()
    return IMAGE_SUFFIXES.index(suffix) if suffix in IMAGE_SUFFIXES else len(IMAGE_SUFFIXES)


def _note_unused_labels(
    root: Path, splits: Mapping[str, Sequence[YoloImage]], defects: Defects
) -> None:
    """Records label files, in the folders that have used ones, that belong to no image."""
    images = [image for members in splits.values() for image in members]
    used = {image.label for image in images if image.label}
    for folder in sorted({(root / label_path(image.name)).parent for image in images}):
        for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
            path = folder / name
            if not name.endswith(".txt") or name.startswith(".") or name in _NO_LABELS:
                continue
            if path not in used and path.stem not in (*splits, "trainval", "valid", "validation"):
                where = as_text(path.relative_to(root).as_posix())
                defects.note(Kind.NO_IMAGE, where, "it labels no image of the splits")


class Label(NamedTuple):
    """One line of a label file: a class number, a box and whether it was a polygon.

    `corners` is (ymin, xmin, ymax, xmax), normalised.
    """

    number: int
    corners: tuple[float, float, float, float]
    is_polygon: bool


def parse_line(line: str, keypoint_values: int = 0) -> Label:
    """Reads `class cx cy w h`, or `class x y x y x y …`, whose bounding box is taken.

    Raises:
        ValueError: it is neither.
    """
    words = line.split()
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{printable(line.strip())!r} has values that are not finite numbers")
    count = len(values)
    if keypoint_values and count == 5 + keypoint_values:
        raise ValueError(
            f"it has {count} values with keypoints, which are not read: keep the first five"
        )
    if count < 5 or (count > 5 and (count < 7 or count % 2 == 0)):
        raise ValueError(
            f"it has {plural(count, 'value')}: a box has five (class, centre x, centre y, width, "
            "height), a polygon seven or more, an odd number"
        )
    if not values[0].is_integer():
        raise ValueError(f"its class is {words[0]}, not a whole number")
    if max(map(abs, values[1:])) > _FARTHEST:
        raise ValueError(
            f"its values {' '.join(map(printable, words[1:5]))} are not shares of the image in "
            "[0, 1]; are they pixels?"
        )
    number = int(values[0])
    if count == 5:
        x, y, width, height = values[1:]
        corners = y - height / 2, x - width / 2, y + height / 2, x + width / 2
        return Label(number, corners, False)
    xs, ys = values[1::2], values[2::2]
    return Label(number, (min(ys), min(xs), max(ys), max(xs)), True)


def fingerprint(listing: YoloListing) -> str:
    """Hashes the classes, the splits, the label files, and the images' names and sizes."""
    members = {split: [i.name for i in images] for split, images in listing.splits.items()}
    head = [list(listing.class_names), listing.keypoint_values, members, listing.listed]
    digest = hashlib.sha256(json.dumps(head).encode())
    for image in _unique(listing).values():
        digest.update(f"\0{file_size(image.path)}\0".encode())
        if image.label is not None:
            digest.update(content_for_hash(image.label, listing.root, MAX_XML_BYTES))
    return digest.hexdigest()


def scan(listing: YoloListing) -> Contents:
    """Decodes the images and checks the labels.

    Raises:
        UserError: no image has a label file.
    """
    images = _unique(listing)
    if images and not any(image.label for image in images.values()):
        first = next(iter(images))
        raise UserError(
            f"none of {plural(len(images), 'image')} in {listing.root} has a label file: that of "
            f"{printable(first)} would be {printable(label_path(first))}"
        )
    checked = check_images([image.path for image in images.values()], listing.root)
    reader = _LabelReader(listing)
    found = {name: reader.read(image, checked[image.path]) for name, image in images.items()}
    usable = {name: image for name, image in found.items() if image is not None}
    splits, notes = {}, list(listing.notes)
    for split, members in listing.splits.items():
        chosen = [usable[image.name] for image in members if image.name in usable]
        splits[split] = split, listing.listed[split], chosen
        unlabelled = [i.name for i in members if i.name in usable and i.label is None]
        if unlabelled:
            notes.append(
                f"{split}: {plural(len(unlabelled), 'image')} of {len(chosen):,} without a label "
                f"file, used as images without objects (such as {unlabelled[0]}: there is no "
                f"{label_path(unlabelled[0])})"
            )
    if reader.polygons:
        labels = sum(len(image.objects) for image in usable.values())
        notes.append(
            f"{plural(reader.polygons, 'label')} of {labels:,} are polygons or rotated boxes: "
            "their bounding boxes are used"
        )
    names = listing.class_names
    return join_splits(splits, names, range(len(names)), notes, listing.defects)


def _unique(listing: YoloListing) -> dict[str, YoloImage]:
    """Returns every image once, by name."""
    return {image.name: image for images in listing.splits.values() for image in images}


class _LabelReader:
    """Reads label files, and records their defects and how many polygons they have."""

    def __init__(self, listing: YoloListing) -> None:
        self._listing, self.polygons = listing, 0

    def read(self, image: YoloImage, checked: Checked) -> UsableImage | None:
        """Reads the image with its usable objects; None if it or its label file is unusable."""
        if isinstance(checked, Broken):
            self._listing.defects.note(checked.kind, image.name, checked.reason)
            return None
        text = ""
        if image.label is not None:
            try:
                text = decode_text(read_inside(image.label, self._listing.root, MAX_XML_BYTES))
            except ValueError as error:
                self._note(image, unreadable(error, Kind.BROKEN_ANNOTATION), str(error))
                return None
        size = checked.header.displayed_size
        objects = [
            self._object(image, number, line, size)
            for number, line in enumerate(text.split("\n"), start=1)
            if line.strip()
        ]
        items = [item for item in objects if item is not None]
        return UsableImage(image.path, image.name, image.image_id, *checked, items)

    def _object(
        self, image: YoloImage, number: int, line: str, size: tuple[int, int]
    ) -> Item | None:
        try:
            label = parse_line(line, self._listing.keypoint_values)
        except ValueError as error:
            self._note(image, Kind.UNREADABLE_BOX, f"line {number}: {error}")
            return None
        names = self._listing.class_names
        if not 0 <= label.number < len(names):
            reason = f"line {number}: class {label.number}; the classes are 0 to {len(names) - 1}"
            self._note(image, Kind.UNKNOWN_CLASS, reason)
            return None
        height, width = size
        ymin, xmin, ymax, xmax = label.corners
        box, kinds = fit_box((ymin * height, xmin * width, ymax * height, xmax * width), size)
        for kind in kinds:
            self._note(image, kind, f"line {number}: x {xmin:g}…{xmax:g}, y {ymin:g}…{ymax:g} of 1")
        if box is None:
            return None
        self.polygons += label.is_polygon
        return Item(names[label.number], box, False, {})

    def _note(self, image: YoloImage, kind: Kind, reason: str) -> None:
        path: Path = image.label or image.path
        where = as_text(path.relative_to(self._listing.root).as_posix())
        self._listing.defects.note(kind, where, reason)
