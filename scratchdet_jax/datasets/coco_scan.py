"""Reads and checks a COCO annotation file and its image folder."""

import collections
import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from reprlib import repr as brief
from typing import Any, NamedTuple

from scratchdet_jax.datasets.checks import Broken, Intact, Journal, check_images
from scratchdet_jax.datasets.coco_json import (
    CategoryTable,
    CocoFile,
    crowd_flag,
    image_key,
    integer,
    join_categories,
    numbers,
    stated_area,
)
from scratchdet_jax.datasets.defects import Defect, Kind
from scratchdet_jax.datasets.objects import (
    Box,
    CocoItem,
    Contents,
    Frame,
    UsableImage,
    annotated_frame,
    fit_box,
    order_box,
    turned,
)
from scratchdet_jax.datasets.untrusted import ImageFolder, OutsideFolderError, as_text


class ListedImage(NamedTuple):
    """A listed image whose file exists; `stated` is its (height, width) in the list."""

    path: Path
    file_name: str
    stated: tuple[int, int] | None


class GroundTruth(NamedTuple):
    """The annotations of a file as scoring needs them; no image is opened.

    Attributes:
        images: ids of the listed images, in order.
        categories: (id, name) sorted by id.
        annotations: dictionaries as in the file, with "image_id", "category_id", "bbox" (corners in
            order, but not clipped to the image), "area" and "iscrowd".
        left_out: ids of listed images that cannot be used.
        defects: everything that was left out or repaired.
        notes: decisions made for the user.
    """

    images: list[int | str]
    categories: tuple[tuple[int, str], ...]
    annotations: list[dict[str, Any]]
    left_out: list[int | str]
    defects: list[Defect]
    notes: list[str]


class Listing(NamedTuple):
    """One split before its images are opened.

    Attributes:
        file: the annotation file.
        root: the resolved image folder.
        images: listed images whose file exists, by id.
        ids: ids of all listed images, usable or not.
        listed: number of different listed images.
        defects: defects found so far.
    """

    file: CocoFile
    root: Path
    images: dict[int, ListedImage]
    ids: set[int]
    listed: int
    defects: list[Defect]


def list_split(file: CocoFile, folder: Path) -> Listing:
    """Finds the files of the images listed in an annotation file, without opening them."""
    root, name = folder.resolve(), as_text(file.path.name)
    defects: list[Defect] = []
    entries, ids, count = _distinct(file, name, defects, _entry_problem, integer)
    finder, images = ImageFolder(root), {}
    for image_id, entry in entries.items():
        where = f"image {image_id}, {as_text(entry['file_name'])}"
        try:
            path, remark = finder.find(entry["file_name"])
        except OutsideFolderError as error:
            defects.append(Defect.of(Kind.OUT_OF_FOLDER, name, f"{where}: {error}"))
            continue
        if path is None:
            hint = f", {remark}" if remark else ""
            defects.append(Defect.of(Kind.NO_IMAGE, name, f"{where}: not in {folder}{hint}"))
            continue
        if remark:
            defects.append(Defect.of(Kind.RENAMED, name, f"{where}: found as {as_text(remark)}"))
        height, width = integer(entry.get("height")), integer(entry.get("width"))
        stated = None if height is None or width is None else (height, width)
        images[image_id] = ListedImage(path, entry["file_name"], stated)
    _note_shared(images, name, defects)
    return Listing(file, root, images, ids, count, defects)


def fingerprint(listings: Mapping[str, Listing]) -> str:
    """Hashes the splits, the annotation files, and the images' names and file sizes."""
    digest = hashlib.sha256()
    for split, listing in listings.items():
        digest.update(json.dumps([split, listing.file.digest]).encode())
        for image in listing.images.values():
            size = image.path.stat().st_size if image.path.exists() else -1
            relative = os.fsencode(image.path.relative_to(listing.root))
            digest.update(b"\0" + relative + f"\0{size}".encode())
    return digest.hexdigest()


def scan(listings: Mapping[str, Listing], table: CategoryTable, journal: Journal) -> Contents:
    """Decodes the images and checks the annotations.

    Args:
        listings: by split.
        table: the categories of all of them.
        journal: images checked earlier.
    """
    splits, left_out = {}, {}
    defects, notes = _of_table(table)
    for split, listing in listings.items():
        if not listing.file.labelled:
            notes.append(
                f"{as_text(listing.file.path.name)} has no annotations, as that of a test set: "
                f"{split} can be predicted on, but neither trained on nor scored"
            )
        images, problems = _scan_split(listing, dict(table.categories), journal)
        defects += listing.defects + problems
        left_out[split] = listing.listed - len(images)
        if images:
            splits[split] = images
        else:
            reason = f"none of its images is usable; listed: {listing.listed}"
            defects.append(
                Defect.of(Kind.EMPTY_SPLIT, f"{listing.file.path.name} ({split})", reason)
            )
    return Contents(
        splits=splits,
        roots={split: listings[split].root for split in splits},
        class_names=tuple(name for _, name in table.categories),
        category_ids=tuple(number for number, _ in table.categories),
        left_out=left_out,
        notes=notes,
        defects=defects,
        test_set=not any(listing.file.labelled for listing in listings.values()),
    )


def read_ground_truth(file: CocoFile) -> GroundTruth:
    """Reads the annotations of a file as `scan` does, but without the images.

    Unlike there, image ids may be texts, and images need no file name.
    """
    name, table = as_text(file.path.name), join_categories([file])
    defects, notes = _of_table(table)
    entries, ids, _ = _distinct(file, name, defects, _scored_entry_problem, image_key)
    by_image, problems = _by_image(file.annotations, entries, ids, name, image_key)
    defects += problems
    reader = _AnnotationReader(name, dict(table.categories), file.annotations, defects)
    number = {category: i for i, category in table.categories}
    annotations = []
    for image_id, items in by_image.items():
        for position, entry in items:
            if found := reader.read_pixels(position, entry, entries[image_id]):
                category, fields = found
                category_id = number[category]
                annotations.append({"image_id": image_id, "category_id": category_id, **fields})
    left_out = [image_id for image_id in ids if image_id not in entries]
    return GroundTruth(list(entries), table.categories, annotations, left_out, defects, notes)


def _of_table(table: CategoryTable) -> tuple[list[Defect], list[str]]:
    """Returns the defects of a category table, and notes on what was left out of it."""
    return (
        [Defect.of(Kind.CATEGORY_NAME, path.name, text) for path, text in table.repaired],
        [f"category left out, because no annotation uses it: {text}" for text in table.left_out],
    )


def _distinct(
    file: CocoFile,
    name: str,
    defects: list[Defect],
    find_problem: Callable[[Any], str],
    key: Callable[[Any], Any],
) -> tuple[dict[Any, dict[str, Any]], set[Any], int]:
    """Returns readable image entries by id, all ids, and the number of different images."""
    by_id: dict[Any, list[dict[str, Any]]] = {}
    unreadable = 0
    for position, entry in enumerate(file.images):
        if problem := find_problem(entry):
            unreadable += 1
            defects.append(Defect.of(Kind.BROKEN_ENTRY, name, f"images[{position}] {problem}"))
        else:
            by_id.setdefault(key(entry["id"]), []).append(entry)
    entries = {}
    for image_id, same in by_id.items():
        names = dict.fromkeys(str(entry.get("file_name", "")) for entry in same)
        if len(names) > 1:
            listed = ", ".join(map(as_text, names))
            defects += [Defect.of(Kind.CONFLICT, name, f"image {image_id}: {listed}")]
            unreadable += len(names)
            continue
        if len(same) > 1:
            reason = f"image {image_id} is listed {len(same)} times"
            defects.append(Defect.of(Kind.LISTED_TWICE, name, reason))
        entries[image_id] = same[0]
    return entries, set(by_id), len(entries) + unreadable


def _entry_problem(entry: Any) -> str:
    if not isinstance(entry, dict):
        return "is not an object"
    if integer(entry.get("id")) is None:
        return f"has the id {brief(entry.get('id'))}; ids must be integers: number the images"
    if not isinstance(entry.get("file_name"), str) or not entry["file_name"].strip():
        return f"(id {entry['id']}) has no file_name"
    return ""


def _scored_entry_problem(entry: Any) -> str:
    if not isinstance(entry, dict):
        return "is not an object"
    if image_key(entry.get("id")) is None:
        return f"has the id {brief(entry.get('id'))}; ids must be integers: number the images"
    return ""


def _note_shared(images: Mapping[int, ListedImage], name: str, defects: list[Defect]) -> None:
    by_path: dict[Path, list[int]] = collections.defaultdict(list)
    for image_id, image in images.items():
        by_path[image.path].append(image_id)
    for path, ids in by_path.items():
        if len(ids) > 1:
            reason = f"{as_text(path.name)}: ids {', '.join(map(str, ids))}"
            defects.append(Defect.of(Kind.SHARED, name, reason))


def _scan_split(
    listing: Listing, categories: Mapping[int, str], journal: Journal
) -> tuple[list[UsableImage], list[Defect]]:
    """Returns the usable images in the order of their list, and the defects."""
    name = as_text(listing.file.path.name)
    paths = list(dict.fromkeys(image.path for image in listing.images.values()))
    checked = check_images(paths, listing.root, journal)
    entries, defects = _by_image(
        listing.file.annotations, listing.images, listing.ids, name, integer
    )
    reader = _AnnotationReader(name, categories, listing.file.annotations, defects)
    images = []
    for image_id, image in listing.images.items():
        found = checked[image.path]
        if isinstance(found, Broken):
            reason = f"image {image_id}, {as_text(image.file_name)}: {found.reason}"
            defects.append(Defect.of(found.kind, name, reason))
        else:
            images.append(_usable_image(image_id, image, found, entries[image_id], reader))
    return images, defects


def _usable_image(
    image_id: int,
    image: ListedImage,
    checked: Intact,
    entries: Sequence[tuple[int, dict[str, Any]]],
    reader: "_AnnotationReader",
) -> UsableImage:
    frame = annotated_frame(image.stated, checked.header)
    if frame.problem:
        kind, reason = frame.problem
        reader.note(kind, f"image {image_id}, {as_text(image.file_name)}: {reason}")
    items = [reader.read(position, entry, frame) for position, entry in entries]
    return UsableImage(
        image.path,
        checked.stamp,
        as_text(image.file_name),
        image_id,
        checked.header.orientation,
        checked.header.displayed_size,
        [item for item in items if item is not None],
    )


def _by_image(
    annotations: Sequence[Any],
    images: Collection[Any],
    ids: Collection[Any],
    name: str,
    key: Callable[[Any], Any],
) -> tuple[dict[Any, list[tuple[int, dict[str, Any]]]], list[Defect]]:
    """Groups annotations and their positions by image, except for images that are left out."""
    entries: dict[Any, list[tuple[int, dict[str, Any]]]] = {i: [] for i in images}
    defects = []
    for position, entry in enumerate(annotations):
        where = f"annotations[{position}]"
        if not isinstance(entry, dict):
            defects.append(Defect.of(Kind.UNREADABLE_BOX, name, f"{where} is not an object"))
            continue
        image_id = key(entry.get("image_id"))
        if image_id not in ids:
            reason = f"{where}: image {brief(entry.get('image_id'))}"
            defects.append(Defect.of(Kind.UNKNOWN_IMAGE, name, reason))
        elif image_id in entries:
            entries[image_id].append((position, entry))
    return entries, defects


def _place(position: int, entry: Mapping[str, Any]) -> str:
    return f"annotations[{position}] (image {entry['image_id']})"


class _AnnotationReader:
    """Reads the annotations of one file and records their defects."""

    def __init__(
        self,
        name: str,
        categories: Mapping[int, str],
        annotations: Sequence[Any],
        defects: list[Defect],
    ) -> None:
        self._name, self._categories, self._defects = name, categories, defects
        ids = (integer(entry.get("id")) for entry in annotations if isinstance(entry, dict))
        self._next_id = max((i for i in ids if i is not None), default=0)
        self._ids: set[int] = set()

    def note(self, kind: Kind, reason: str) -> None:
        """Records a defect of this file."""
        self._defects.append(Defect.of(kind, self._name, reason))

    def read(self, position: int, entry: Mapping[str, Any], frame: Frame) -> CocoItem | None:
        """Reads the object of an annotation, its box in the displayed frame; None if unusable."""
        where = _place(position, entry)
        found = self._category_and_corners(entry, where)
        if found is None:
            return None
        category, corners = found
        box, kinds = fit_box(corners, frame.size)
        of = f" of {frame.size[1]}×{frame.size[0]}"
        self._note_box(kinds, corners, where, of)
        if box is None:
            return None
        return CocoItem(
            category,
            turned(box, frame.orientation),
            self._area(entry, box, frame, where),
            self._id(entry, where),
            self._flag(entry, where),
        )

    def read_pixels(
        self, position: int, entry: Mapping[str, Any], image: Mapping[str, Any]
    ) -> tuple[str, dict[str, Any]] | None:
        """Reads the category and the fields "bbox", "area" and "iscrowd"; None if unusable.

        The box has its corners in order, but is not clipped to the image. Scoring does not use the
        annotation's id.
        """
        where = _place(position, entry)
        found = self._category_and_corners(entry, where)
        if found is None:
            return None
        category, corners = found
        box, kinds = order_box(corners)
        full = integer(image.get("width")), integer(image.get("height"))
        of = "" if None in full else f" of {full[0]}×{full[1]}"
        self._note_box(kinds, corners, where, of)
        if box is None:
            return None
        # From the numbers as written, because sums of them are rounded.
        x, y, width, height = map(float, entry["bbox"])
        area = self._stated_area(entry, where)
        return category, {
            "bbox": [min(x, x + width), min(y, y + height), abs(width), abs(height)],
            "area": abs(width * height) if area is None else area,
            "iscrowd": int(self._flag(entry, where)),
        }

    def _category_and_corners(self, entry: Mapping[str, Any], where: str) -> tuple[str, Box] | None:
        values = numbers(entry.get("bbox"), 4)
        if values is None:
            text = brief(entry.get("bbox"))
            reason = f"{where}: its bbox is {text}, not four finite numbers x, y, w, h"
            self.note(Kind.UNREADABLE_BOX, reason)
            return None
        number = integer(entry.get("category_id"))
        category = None if number is None else self._categories.get(number)
        if category is None:
            self.note(Kind.UNKNOWN_CLASS, f"{where}: category {brief(entry.get('category_id'))}")
            return None
        x, y, width, height = values
        return category, (y, x, y + height, x + width)

    def _note_box(self, kinds: Sequence[Kind], corners: Box, where: str, of: str = "") -> None:
        y, x, bottom, right = corners
        for kind in kinds:
            self.note(kind, f"{where}: x {x:g}, y {y:g}, w {right - x:g}, h {bottom - y:g}{of}")

    def _area(self, entry: Mapping[str, Any], box: Box, frame: Frame, where: str) -> int:
        """Returns an integer, as TFDS stores it. Rounding up would change COCO's size classes."""
        found = self._stated_area(entry, where)
        if found is not None:
            return int(found)
        height, width = frame.size
        return int(round((box[2] - box[0]) * (box[3] - box[1]) * height * width, 3))

    def _stated_area(self, entry: Mapping[str, Any], where: str) -> float | None:
        found = stated_area(entry)
        if found is None and "area" in entry:
            self.note(Kind.AREA, f"{where}: its area is {brief(entry['area'])}")
        return found

    def _id(self, entry: Mapping[str, Any], where: str) -> int:
        number = integer(entry.get("id"))
        if number is None or number in self._ids:
            self._next_id += 1
            reason = f"{where}: its id is {brief(entry.get('id'))}, now {self._next_id}"
            self.note(Kind.ANNOTATION_ID, reason)
            number = self._next_id
        self._ids.add(number)
        return number

    def _flag(self, entry: Mapping[str, Any], where: str) -> bool:
        flag = crowd_flag(entry)
        if flag is None:
            self.note(Kind.FLAG, f"{where}: iscrowd is {brief(entry['iscrowd'])}")
        return bool(flag)
