"""Reads and checks the images and label files of a YOLO data set."""

import hashlib
import json
import math
from pathlib import Path
from typing import NamedTuple

from scratchdet_jax.datasets.objects import (
    Broken,
    Checked,
    Contents,
    Item,
    Kind,
    UsableImage,
    check_images,
    fit_box,
    join_splits,
    unreadable,
)
from scratchdet_jax.datasets.untrusted import (
    MAX_XML_BYTES,
    as_text,
    content_for_hash,
    decode_text,
    file_size,
    printable,
    read_inside,
)
from scratchdet_jax.datasets.yolo_data import YoloImage, YoloListing, label_path
from scratchdet_jax.errors import UserError, plural

# A value beyond this is no share of the image but a pixel; below it a box is only too large.
_FARTHEST = 2.0


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
    usable = {}
    for name, image in images.items():
        found = reader.read(image, checked[image.path])
        if found is not None:
            usable[name] = found
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
            reason = f"line {number}: x {xmin:g}…{xmax:g}, y {ymin:g}…{ymax:g} of 1"
            self._note(image, kind, reason)
        if box is None:
            return None
        self.polygons += label.is_polygon
        return Item(names[label.number], box, False, {})

    def _note(self, image: YoloImage, kind: Kind, reason: str) -> None:
        path: Path = image.label or image.path
        where = as_text(path.relative_to(self._listing.root).as_posix())
        self._listing.defects.note(kind, where, reason)
