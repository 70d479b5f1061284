"""Reads and checks a COCO annotation file and its image folder."""

import collections
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
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
    Item,
    Kind,
    UsableImage,
    annotated_frame,
    area_pixels,
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
    root = folder.resolve()
    reader = _Reader(file, Defects())
    entries, ids, count = reader.distinct()
    finder, images = ImageFolder(root), {}
    by_path: dict[Path, list[int]] = collections.defaultdict(list)
    for image_id, entry in entries.items():
        where = f"image {image_id}, {as_text(entry['file_name'])}"
        try:
            path, remark = finder.find(entry["file_name"])
        except ValueError as error:
            reader.note(Kind.OUT_OF_FOLDER, f"{where}: {error}")
            continue
        if path is None:
            reader.note(Kind.NO_IMAGE, f"{where}: not in {folder}{remark}")
            continue
        if remark:
            reader.note(Kind.RENAMED, f"{where}: found as {as_text(remark)}")
        images[image_id] = ListedImage(path, entry["file_name"], _stated_size(entry))
        by_path[path].append(image_id)
    for path, same in by_path.items():
        if len(same) > 1:
            reader.note(Kind.SHARED, f"{as_text(path.name)}: ids {', '.join(map(str, same))}")
    return Listing(file, root, images, ids, count, reader.defects)


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
        images = _scan_split(listing, dict(categories), defects)
        splits[split] = f"{name} ({split})", listing.listed, images
    numbers, names = zip(*categories, strict=True)
    contents = join_splits(splits, names, numbers, notes, defects)
    return contents._replace(test_set=not any(file.labelled for file in files))


def read_ground_truth(file: CocoFile) -> GroundTruth:
    """Reads the annotations of a file as `scan` does, but without the images.

    Unlike there, image ids may be texts, and images need no file name.
    """
    defects = Defects()
    categories, notes = _read_table([file], defects)
    reader = _Reader(file, defects, dict(categories), images_needed=False)
    entries, ids, _ = reader.distinct()
    number = {category: i for i, category in categories}
    annotations = []
    for image_id, items in reader.by_image(entries, ids).items():
        size = _stated_size(entries[image_id])
        for position, entry in items:
            found = reader.read(position, entry, size)
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


def _stated_size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns (height, width) of an image entry; None if it does not have both."""
    height, width = integer(entry.get("height")), integer(entry.get("width"))
    return None if height is None or width is None else (height, width)


def _scan_split(
    listing: Listing, categories: Mapping[int, str], defects: Defects
) -> list[UsableImage]:
    """Returns the usable images in the order of their list."""
    paths = list(dict.fromkeys(image.path for image in listing.images.values()))
    checked = check_images(paths, listing.root)
    reader = _Reader(listing.file, defects, categories)
    entries = reader.by_image(listing.images, listing.ids)
    annotations = [entry for entry in listing.file.annotations if isinstance(entry, dict)]
    given = {number for e in annotations if (number := integer(e.get("id"))) is not None}
    fresh = itertools.count(max(given, default=0) + 1)
    taken: set[int] = set()
    images = []
    for image_id, image in listing.images.items():
        found = checked[image.path]
        name = as_text(image.file_name)
        where = f"image {image_id}, {name}: "
        if isinstance(found, Broken):
            reader.note(found.kind, where + found.reason)
            continue
        size, orientation = annotated_frame(image.stated, found.header, defects, reader.name, where)
        items = []
        for position, entry in entries[image_id]:
            if read := reader.read(position, entry, size):
                number = integer(entry.get("id"))
                if number is None or number in taken:
                    number = next(fresh)
                    text = f"its id is {brief(entry.get('id'))}, now {number}"
                    reader.note(Kind.ANNOTATION_ID, f"{_place(position, entry)}: {text}")
                taken.add(number)
                # An integer, as TFDS stores it. Rounding up would change COCO's size classes.
                stored = int(read.features.get("area", area_pixels(read.box, size)))
                features = {"area": stored, "id": number, "is_crowd": read.is_ignored}
                box = turned(read.box, orientation)
                items.append(read._replace(box=box, features=features))
        images.append(UsableImage(image.path, name, image_id, *found, items))
    return images


def _place(position: int, entry: Mapping[str, Any]) -> str:
    return f"annotations[{position}] (image {entry['image_id']})"


class _Reader:
    """Reads the entries of one file and records their defects.

    Attributes:
        name: of the file, for messages.
        defects: where its defects are noted.
    """

    def __init__(
        self,
        file: CocoFile,
        defects: Defects,
        categories: Mapping[int, str] | None = None,
        images_needed: bool = True,
    ) -> None:
        """Takes a file, and the categories by id; `images_needed`: see `read_ground_truth`."""
        self.name, self.defects = as_text(file.path.name), defects
        self._file, self._categories = file, categories or {}
        self._images_needed = images_needed
        self._key: Callable[[Any], Any] = integer if images_needed else image_key

    def note(self, kind: Kind, reason: str) -> None:
        """Records a defect of the file."""
        self.defects.note(kind, self.name, reason)

    def distinct(self) -> tuple[dict[Any, dict[str, Any]], set[Any], int]:
        """Returns readable image entries by id, all ids, and the number of different images."""
        by_id: dict[Any, list[dict[str, Any]]] = {}
        unreadable = 0
        for position, entry in enumerate(self._file.images):
            if problem := self._entry_problem(entry):
                unreadable += 1
                self.note(Kind.BROKEN_ENTRY, f"images[{position}] {problem}")
            else:
                by_id.setdefault(self._key(entry["id"]), []).append(entry)
        entries = {}
        for image_id, same in by_id.items():
            names = dict.fromkeys(str(entry.get("file_name", "")) for entry in same)
            if len(names) > 1:
                self.note(Kind.CONFLICT, f"image {image_id}: {', '.join(map(as_text, names))}")
                unreadable += len(names)
                continue
            if len(same) > 1:
                self.note(Kind.LISTED_TWICE, f"image {image_id} is listed {len(same)} times")
            entries[image_id] = same[0]
        return entries, set(by_id), len(entries) + unreadable

    def _entry_problem(self, entry: Any) -> str:
        if not isinstance(entry, dict):
            return "is not an object"
        if self._key(entry.get("id")) is None:
            return f"has the id {brief(entry.get('id'))}; ids must be integers: number the images"
        file_name = entry.get("file_name")
        if self._images_needed and not (isinstance(file_name, str) and file_name.strip()):
            return f"(id {entry['id']}) has no file_name"
        return ""

    def by_image(
        self, images: Collection[Any], ids: Collection[Any]
    ) -> dict[Any, list[tuple[int, dict[str, Any]]]]:
        """Groups annotations and their positions by image, except for images that are left out."""
        entries: dict[Any, list[tuple[int, dict[str, Any]]]] = {i: [] for i in images}
        for position, entry in enumerate(self._file.annotations):
            where = f"annotations[{position}]"
            if not isinstance(entry, dict):
                self.note(Kind.UNREADABLE_BOX, f"{where} is not an object")
                continue
            image_id = self._key(entry.get("image_id"))
            if image_id not in ids:
                self.note(Kind.UNKNOWN_IMAGE, f"{where}: image {brief(entry.get('image_id'))}")
            elif image_id in entries:
                entries[image_id].append((position, entry))
        return entries

    def read(
        self, position: int, entry: Mapping[str, Any], size: tuple[int, int] | None
    ) -> Item | None:
        """Reads an annotation, with its area if it is stated; None if it is unusable.

        `size` is the (height, width) that the box refers to, None if it is unknown. The box is
        clipped to it and normalised if images are needed.
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
        box, kinds = fit_box(corners, size if self._images_needed else None)
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
