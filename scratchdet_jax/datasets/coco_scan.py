"""Reads and checks a COCO annotation file and its image folder."""

import collections
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from reprlib import repr as brief
from typing import Any, NamedTuple

from scratchdet_jax.datasets.coco_json import (
    CocoFile,
    crowd_flag,
    image_key,
    integer,
    join_categories,
    numbers,
    stated_area,
)
from scratchdet_jax.datasets.objects import (
    Broken,
    Contents,
    Defects,
    Frame,
    Item,
    Kind,
    UsableImage,
    annotated_frame,
    check_images,
    fit_box,
    join_splits,
    turned,
)
from scratchdet_jax.datasets.untrusted import ImageFolder, as_text, file_size


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
    defects: Defects
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
    defects: Defects


def list_split(file: CocoFile, folder: Path) -> Listing:
    """Finds the files of the images listed in an annotation file, without opening them."""
    root, name = folder.resolve(), as_text(file.path.name)
    defects = Defects()
    entries, ids, count = _distinct(file, name, defects, integer, True)
    finder, images = ImageFolder(root), {}
    for image_id, entry in entries.items():
        where = f"image {image_id}, {as_text(entry['file_name'])}"
        try:
            path, remark = finder.find(entry["file_name"])
        except ValueError as error:
            defects.note(Kind.OUT_OF_FOLDER, name, f"{where}: {error}")
            continue
        if path is None:
            defects.note(Kind.NO_IMAGE, name, f"{where}: not in {folder}{remark}")
            continue
        if remark:
            defects.note(Kind.RENAMED, name, f"{where}: found as {as_text(remark)}")
        images[image_id] = ListedImage(path, entry["file_name"], _stated_size(entry))
    _note_shared(images, name, defects)
    return Listing(file, root, images, ids, count, defects)


def fingerprint(listings: Mapping[str, Listing]) -> str:
    """Hashes the splits, the annotation files, and the images' names and file sizes."""
    digest = hashlib.sha256()
    for split, listing in listings.items():
        digest.update(json.dumps([split, listing.file.digest]).encode())
        for image in listing.images.values():
            relative = os.fsencode(image.path.relative_to(listing.root))
            digest.update(b"\0" + relative + f"\0{file_size(image.path)}".encode())
    return digest.hexdigest()


def scan(listings: Mapping[str, Listing]) -> Contents:
    """Decodes the images and checks the annotations of all splits."""
    splits, defects = {}, Defects()
    files = [listing.file for listing in listings.values()]
    categories, notes = _read_table(files, defects)
    for split, listing in listings.items():
        name = as_text(listing.file.path.name)
        if not listing.file.labelled:
            notes.append(
                f"{name} has no annotations, as that of a test set: {split} can be predicted on, "
                "but neither trained on nor scored"
            )
        defects += listing.defects
        images = _scan_split(listing, name, dict(categories), defects)
        splits[split] = f"{name} ({split})", listing.listed, images
    numbers, names = zip(*categories, strict=True)
    contents = join_splits(splits, names, numbers, notes, defects)
    return contents._replace(test_set=not any(file.labelled for file in files))


def read_ground_truth(file: CocoFile) -> GroundTruth:
    """Reads the annotations of a file as `scan` does, but without the images.

    Unlike there, image ids may be texts, and images need no file name.
    """
    name, defects = as_text(file.path.name), Defects()
    categories, notes = _read_table([file], defects)
    entries, ids, _ = _distinct(file, name, defects, image_key, False)
    by_image = _by_image(file.annotations, entries, ids, name, image_key, defects)
    reader = _AnnotationReader(name, dict(categories), defects)
    number = {category: i for i, category in categories}
    annotations = []
    for image_id, items in by_image.items():
        size = _stated_size(entries[image_id])
        for position, entry in items:
            found = reader.read(position, entry, size, clipped=False)
            if found is None:
                continue
            # From the numbers as written, because sums of them are rounded.
            x, y, width, height = map(float, entry["bbox"])
            row = {
                "image_id": image_id,
                "category_id": number[found.name],
                "bbox": [min(x, x + width), min(y, y + height), abs(width), abs(height)],
                "area": found.features.get("area", abs(width * height)),
                "iscrowd": int(found.is_ignored),
            }
            annotations.append(row)
    left_out = [image_id for image_id in ids if image_id not in entries]
    return GroundTruth(list(entries), categories, annotations, left_out, defects, notes)


def _read_table(
    files: Sequence[CocoFile], defects: Defects
) -> tuple[tuple[tuple[int, str], ...], list[str]]:
    """Returns the category table, and notes on what was left out of it."""
    categories, left_out = join_categories(files)
    for file in files:
        for text in file.repaired:
            defects.note(Kind.CATEGORY_NAME, file.path.name, text)
    return categories, [
        f"category left out, because no annotation uses it: {text}" for text in left_out
    ]


def _distinct(
    file: CocoFile, name: str, defects: Defects, key: Callable[[Any], Any], needs_file: bool
) -> tuple[dict[Any, dict[str, Any]], set[Any], int]:
    """Returns readable image entries by id, all ids, and the number of different images."""
    by_id: dict[Any, list[dict[str, Any]]] = {}
    unreadable = 0
    for position, entry in enumerate(file.images):
        if problem := _entry_problem(entry, key, needs_file):
            unreadable += 1
            defects.note(Kind.BROKEN_ENTRY, name, f"images[{position}] {problem}")
        else:
            by_id.setdefault(key(entry["id"]), []).append(entry)
    entries = {}
    for image_id, same in by_id.items():
        names = dict.fromkeys(str(entry.get("file_name", "")) for entry in same)
        if len(names) > 1:
            listed = ", ".join(map(as_text, names))
            defects.note(Kind.CONFLICT, name, f"image {image_id}: {listed}")
            unreadable += len(names)
            continue
        if len(same) > 1:
            reason = f"image {image_id} is listed {len(same)} times"
            defects.note(Kind.LISTED_TWICE, name, reason)
        entries[image_id] = same[0]
    return entries, set(by_id), len(entries) + unreadable


def _entry_problem(entry: Any, key: Callable[[Any], Any], needs_file: bool) -> str:
    if not isinstance(entry, dict):
        return "is not an object"
    if key(entry.get("id")) is None:
        return f"has the id {brief(entry.get('id'))}; ids must be integers: number the images"
    file_name = entry.get("file_name")
    if needs_file and not (isinstance(file_name, str) and file_name.strip()):
        return f"(id {entry['id']}) has no file_name"
    return ""


def _stated_size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns (height, width) of an image entry; None if it does not have both."""
    height, width = integer(entry.get("height")), integer(entry.get("width"))
    return None if height is None or width is None else (height, width)


def _note_shared(images: Mapping[int, ListedImage], name: str, defects: Defects) -> None:
    by_path: dict[Path, list[int]] = collections.defaultdict(list)
    for image_id, image in images.items():
        by_path[image.path].append(image_id)
    for path, ids in by_path.items():
        if len(ids) > 1:
            reason = f"{as_text(path.name)}: ids {', '.join(map(str, ids))}"
            defects.note(Kind.SHARED, name, reason)


def _scan_split(
    listing: Listing, name: str, categories: Mapping[int, str], defects: Defects
) -> list[UsableImage]:
    """Returns the usable images in the order of their list."""
    paths = list(dict.fromkeys(image.path for image in listing.images.values()))
    checked = check_images(paths, listing.root)
    entries = _by_image(
        listing.file.annotations, listing.images, listing.ids, name, integer, defects
    )
    reader = _AnnotationReader(name, categories, defects)
    annotations = [entry for entry in listing.file.annotations if isinstance(entry, dict)]
    given = {number for e in annotations if (number := integer(e.get("id"))) is not None}
    fresh = itertools.count(max(given, default=0) + 1)
    taken: set[int] = set()
    images = []
    for image_id, image in listing.images.items():
        found = checked[image.path]
        where = f"image {image_id}, {as_text(image.file_name)}"
        if isinstance(found, Broken):
            reader.note(found.kind, f"{where}: {found.reason}")
            continue
        frame = annotated_frame(image.stated, found.header)
        if frame.problem:
            kind, reason = frame.problem
            reader.note(kind, f"{where}: {reason}")
        items = []
        for position, entry in entries[image_id]:
            read = reader.read(position, entry, frame.size, clipped=True)
            if read is not None:
                features = {
                    "area": _area(read, frame),
                    "id": _own_id(position, entry, taken, fresh, reader),
                    "is_crowd": read.is_ignored,
                }
                box = turned(read.box, frame.orientation)
                items.append(read._replace(box=box, features=features))
        file_name = as_text(image.file_name)
        images.append(UsableImage(image.path, file_name, image_id, *found, items))
    return images


def _own_id(
    position: int,
    entry: Mapping[str, Any],
    taken: set[int],
    fresh: Iterator[int],
    reader: "_AnnotationReader",
) -> int:
    """Returns the annotation's id, or a `fresh` one if it is missing, `taken` or no integer."""
    number = integer(entry.get("id"))
    if number is None or number in taken:
        number = next(fresh)
        reason = f"{_place(position, entry)}: its id is {brief(entry.get('id'))}, now {number}"
        reader.note(Kind.ANNOTATION_ID, reason)
    taken.add(number)
    return number


def _area(found: Item, frame: Frame) -> int:
    """Returns an integer, as TFDS stores it. Rounding up would change COCO's size classes."""
    if "area" in found.features:
        return int(found.features["area"])
    height, width = frame.size
    ymin, xmin, ymax, xmax = found.box
    return int(round((ymax - ymin) * (xmax - xmin) * height * width, 3))


def _by_image(
    annotations: Sequence[Any],
    images: Collection[Any],
    ids: Collection[Any],
    name: str,
    key: Callable[[Any], Any],
    defects: Defects,
) -> dict[Any, list[tuple[int, dict[str, Any]]]]:
    """Groups annotations and their positions by image, except for images that are left out."""
    entries: dict[Any, list[tuple[int, dict[str, Any]]]] = {i: [] for i in images}
    for position, entry in enumerate(annotations):
        where = f"annotations[{position}]"
        if not isinstance(entry, dict):
            defects.note(Kind.UNREADABLE_BOX, name, f"{where} is not an object")
            continue
        image_id = key(entry.get("image_id"))
        if image_id not in ids:
            reason = f"{where}: image {brief(entry.get('image_id'))}"
            defects.note(Kind.UNKNOWN_IMAGE, name, reason)
        elif image_id in entries:
            entries[image_id].append((position, entry))
    return entries


def _place(position: int, entry: Mapping[str, Any]) -> str:
    return f"annotations[{position}] (image {entry['image_id']})"


class _AnnotationReader:
    """Reads the annotations of one file and records their defects."""

    def __init__(self, name: str, categories: Mapping[int, str], defects: Defects) -> None:
        self._name, self._categories, self._defects = name, categories, defects

    def note(self, kind: Kind, reason: str) -> None:
        """Records a defect of this file."""
        self._defects.note(kind, self._name, reason)

    def read(
        self, position: int, entry: Mapping[str, Any], size: tuple[int, int] | None, clipped: bool
    ) -> Item | None:
        """Reads an annotation, with its area if it is stated; None if it is unusable.

        Args:
            position: in the list of annotations.
            entry: the annotation.
            size: (height, width) that the box refers to; None: unknown.
            clipped: whether the box is clipped to the size and normalised.
        """
        where = _place(position, entry)
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
        corners = y, x, y + height, x + width
        box, kinds = fit_box(corners, size if clipped else None)
        of = f" of {size[1]}×{size[0]}" if size else ""
        for kind in kinds:
            self.note(kind, f"{where}: x {x:g}, y {y:g}, w {width:g}, h {height:g}{of}")
        if box is None:
            return None
        area, flag = stated_area(entry), crowd_flag(entry)
        if area is None and "area" in entry:
            self.note(Kind.AREA, f"{where}: its area is {brief(entry['area'])}")
        if flag is None:
            self.note(Kind.FLAG, f"{where}: iscrowd is {brief(entry['iscrowd'])}")
        return Item(category, box, bool(flag), {} if area is None else {"area": area})
