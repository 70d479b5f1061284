"""Reads and checks a folder in VOC layout, file by file."""

import collections
import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from scratchdet_jax.data.builders.checks import Checked, Journal, check_images
from scratchdet_jax.data.builders.defects import Defect, Kind
from scratchdet_jax.data.builders.folder_builder import Contents
from scratchdet_jax.data.builders.objects import (
    UsableImage,
    VocItem,
    annotated_frame,
    fit_box,
    turned,
)
from scratchdet_jax.data.untrusted import (
    IMAGE_SUFFIXES,
    MAX_LIST_BYTES,
    MAX_XML_BYTES,
    OutsideFolderError,
    as_key,
    as_text,
    decode_text,
    printable,
    read_inside,
)
from scratchdet_jax.data.voc_xml import VocAnnotation, parse_annotation
from scratchdet_jax.errors import UserError

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

_LABELLED_LINE = re.compile(r"\S+\s+(-1|0|1)")  # in per-class lists such as car_train.txt


class Listing(NamedTuple):
    """The files of a folder before any is opened.

    An id is a file name without its suffix, in the form of `untrusted.as_key`.

    Attributes:
        root: the resolved folder.
        images: image files by id.
        annotations: annotation files by id.
        lists: the listed ids by file name of the list; empty if there are no plain lists.
        duplicates: files whose id is taken by another file.
    """

    root: Path
    images: dict[str, Path]
    annotations: dict[str, Path]
    lists: dict[str, list[str]]
    duplicates: list[Defect]


def list_folder(folder: Path, wanted: Sequence[str] | None) -> Listing:
    """Lists the files and the ids of the wanted splits; opens no image and no annotation.

    Raises:
        UserError: the folder is not in VOC layout, has a part that is a link to the outside, or
            lacks a wanted split.
    """
    root = folder.resolve()
    for part in ("JPEGImages", "Annotations"):
        if not (root / part).is_dir():
            inside = sorted(printable(str(p.parent)) for p in folder.glob("*/JPEGImages"))
            hint = f"; did you mean {' or '.join(inside)}?" if inside else ""
            raise UserError(f"{folder} is not in VOC layout: it has no folder {part}{hint}")
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        if not (root / part).resolve().is_relative_to(root):
            raise UserError(
                f"{folder}/{part} is a link to something outside {folder}, where nothing is read: "
                "put the files themselves there"
            )
    duplicates: list[Defect] = []
    images = _by_id(root, "JPEGImages", IMAGE_SUFFIXES, duplicates)
    annotations = _by_id(root, "Annotations", (".xml",), duplicates)
    lists = _read_lists(root, images)
    if wanted is not None:
        known = [os.path.splitext(name)[0] for name in lists] or ["train"]
        for split in wanted:
            if split not in known:
                raise UserError(f"{folder} has no split {split!r}; it has {', '.join(known)}")
        lists = {n: ids for n, ids in lists.items() if os.path.splitext(n)[0] in wanted}
    return Listing(root, images, annotations, lists, duplicates)


def fingerprint(
    listing: Listing, class_names: Sequence[str] | None, splits: Sequence[str] | None
) -> str:
    """A hash of the options, the lists, the annotations, and the images' names and file sizes."""
    options = [list(class_names or []), list(splits or []), listing.lists]
    digest = hashlib.sha256(json.dumps(options).encode())
    for path in listing.annotations.values():
        digest.update(b"\0" + os.fsencode(path.name) + b"\0")
        try:
            digest.update(read_inside(path, listing.root, MAX_XML_BYTES))
        except ValueError as error:
            digest.update(str(error).encode())
    for path in listing.images.values():
        size = path.stat().st_size if path.exists() else -1
        digest.update(b"\0" + os.fsencode(path.name) + f"\0{size}".encode())
    return digest.hexdigest()


def scan(listing: Listing, class_names: Sequence[str] | None, journal: Journal) -> Contents:
    """Reads, decodes and checks everything."""
    defects, notes = list(listing.duplicates), []
    listed = _listed_splits(listing, defects, notes)
    ids = dict.fromkeys(i for members in listed.values() for i in members if i in listing.images)
    annotations = _read_annotations(listing, ids, defects)
    paths = [listing.images[image_id] for image_id in annotations]
    checked = check_images(paths, listing.root, journal)
    images = {}
    for image_id, annotation in annotations.items():
        found = checked[listing.images[image_id]]
        image, problems = _usable_image(listing, image_id, annotation, found, class_names)
        defects += problems
        if image is not None:
            images[image_id] = image
    splits = {split: [images[i] for i in m if i in images] for split, m in listed.items()}
    left_out = {split: len(members) - len(splits[split]) for split, members in listed.items()}
    for split in [split for split, members in splits.items() if not members]:
        reason = f"none of its images is usable; listed: {len(listed[split])}"
        defects.append(Defect.of(Kind.EMPTY_SPLIT, f"ImageSets/Main ({split})", reason))
        del splits[split]
    names = _resolve_classes(
        {o.name for i in images.values() for o in i.objects}, class_names, notes
    )
    return Contents(
        splits=splits,
        roots=dict.fromkeys(splits, listing.root),
        class_names=names,
        category_ids=None,
        left_out=left_out,
        notes=notes,
        defects=defects,
    )


def _by_id(
    root: Path, part: str, suffixes: Sequence[str], duplicates: list[Defect]
) -> dict[str, Path]:
    """The files of one kind by id; of several with one id, the earliest in `suffixes` is used."""
    found: list[tuple[str, int, str]] = []
    for name in os.listdir(root / part):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in suffixes:
            found.append((as_key(stem), suffixes.index(suffix.lower()), name))
    table: dict[str, Path] = {}
    for key, _, name in sorted(found):
        path = table.setdefault(key, root / part / name)
        if path.name != name:
            reason = f"{as_text(path.name)} is used"
            duplicates.append(Defect.of(Kind.TWO_FILES, f"{part}/{as_text(name)}", reason))
    return table


def _read_lists(root: Path, images: Mapping[str, Path]) -> dict[str, list[str]]:
    """The ids of the plain lists by file name."""
    folder = root / "ImageSets" / "Main"
    lists = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() != ".txt":
            continue
        try:
            text = decode_text(read_inside(path, root, MAX_LIST_BYTES))
        except ValueError as error:
            raise UserError(f"{printable(str(path))} cannot be read: {error}") from None
        ids = [line.strip() for line in text.split("\n") if line.strip()]
        keys = [as_key(line) for line in ids]
        labelled = ids and all(_LABELLED_LINE.fullmatch(line) for line in ids)
        if not labelled or any(key in images for key in keys):  # an image may be called "photo 1"
            lists[as_text(path.name)] = keys
    return lists


def _listed_splits(
    listing: Listing, defects: list[Defect], notes: list[str]
) -> dict[str, list[str]]:
    """Unique ids by split; adds missing and repeated ones to `defects`."""
    lists = listing.lists
    if not lists:
        notes.append("ImageSets/Main has no plain list of ids: all images form the split train")
        lists = {"train.txt": sorted({*listing.images, *listing.annotations})}
    splits: dict[str, list[str]] = {}
    for filename, ids in lists.items():
        stem = os.path.splitext(filename)[0]
        split = re.sub(r"[^\w-]", "_", stem)
        split = "all_images" if split == "all" else split  # TFDS reserves "all"
        if split in splits:
            raise UserError(
                f"two lists in {listing.root}/ImageSets/Main give the split {split}: rename one"
            )
        if split != stem:
            notes.append(f"the split of ImageSets/Main/{printable(filename)} is named {split}")
        for image_id, count in collections.Counter(ids).items():
            where = f"ImageSets/Main/{filename}"
            if count > 1:
                reason = f"{image_id} is listed {count} times"
                defects.append(Defect.of(Kind.LISTED_TWICE, where, reason))
            if image_id not in listing.images:
                source = where if listing.lists else f"Annotations/{image_id}.xml"
                defects.append(_missing_image(source, image_id))
        splits[split] = list(dict.fromkeys(ids))
    unlisted = len(listing.images.keys() - {i for members in splits.values() for i in members})
    if unlisted:
        notes.append(f"images of JPEGImages in none of the splits used: {unlisted}")
    return splits


def _missing_image(source: str, image_id: str) -> Defect:
    parts = PureWindowsPath(image_id)
    if parts.root or ".." in parts.parts:
        return Defect.of(Kind.OUT_OF_FOLDER, source, f"{image_id} is not an id but a path")
    reason = f"{image_id} has no image in JPEGImages ({', '.join(IMAGE_SUFFIXES)})"
    if os.path.splitext(image_id)[1].lower() in IMAGE_SUFFIXES:
        reason += "; list ids without the file suffix"
    return Defect.of(Kind.NO_IMAGE, source, reason)


def _read_annotations(
    listing: Listing, ids: Iterable[str], defects: list[Defect]
) -> dict[str, VocAnnotation]:
    """The readable annotations, by image id."""
    annotations = {}
    for image_id in ids:
        file = f"Annotations/{image_id}.xml"
        if image_id not in listing.annotations:
            image_file = f"JPEGImages/{as_text(listing.images[image_id].name)}"
            defects.append(Defect.of(Kind.NO_ANNOTATION, image_file, f"there is no {file}"))
            continue
        try:
            data = read_inside(listing.annotations[image_id], listing.root, MAX_XML_BYTES)
            annotations[image_id] = parse_annotation(data)
        except OutsideFolderError as error:
            defects.append(Defect.of(Kind.OUT_OF_FOLDER, file, str(error)))
        except ValueError as error:
            defects.append(Defect.of(Kind.BROKEN_ANNOTATION, file, str(error)))
    return annotations


def _resolve_classes(
    found: set[str], class_names: Sequence[str] | None, notes: list[str]
) -> tuple[str, ...]:
    if class_names is not None:
        return tuple(class_names)
    lowered = collections.Counter(name.lower() for name in found)
    for name in sorted(found):
        if lowered[name.lower()] > 1:
            notes.append(f"the class {name} differs from another one only in upper and lower case")
    if found and found <= set(VOC_CLASSES):
        if len(found) < len(VOC_CLASSES):
            notes.append(
                f"all classes found ({len(found)}) are VOC's, so VOC's 20 classes are used, in "
                "VOC's order; to use only those found, give the class names"
            )
        return VOC_CLASSES
    return tuple(sorted(found))


def _usable_image(
    listing: Listing,
    image_id: str,
    annotation: VocAnnotation,
    checked: Checked,
    class_names: Sequence[str] | None,
) -> tuple[UsableImage | None, list[Defect]]:
    """The image with its usable objects (None if the image is unusable), and its defects."""
    path = listing.images[image_id]
    filename = as_text(path.name)
    if checked.header is None:
        return None, [Defect.of(checked.kind, f"JPEGImages/{filename}", checked.reason)]
    file = f"Annotations/{image_id}.xml"
    frame = annotated_frame(annotation.size, checked.header)
    objects, problems = _usable_objects(annotation, frame.size, class_names)
    if frame.problem:
        problems.insert(0, frame.problem)
    image = UsableImage(
        path,
        checked.stamp,
        filename,
        image_id,
        checked.header.orientation,
        checked.header.displayed_size,
        [item._replace(box=turned(item.box, frame.orientation)) for item in objects],
    )
    return image, [Defect.of(kind, file, text) for kind, text in problems]


def _usable_objects(
    annotation: VocAnnotation, size: tuple[int, int], class_names: Sequence[str] | None
) -> tuple[list[VocItem], list[tuple[Kind, str]]]:
    """Objects with boxes normalised to an image of (height, width), and the defects found."""
    objects, problems = [], []
    for number, item in enumerate(annotation.objects, start=1):
        where = f"object {number} ({item.name or 'no name'})"
        if item.box_pixels is None:
            problems.append((Kind.UNREADABLE_BOX, f"{where}: {item.problem}"))
            continue
        if item.problem:
            problems.append((Kind.FLAG, f"{where}: {item.problem}"))
        if class_names is not None and item.name not in class_names:
            close = difflib.get_close_matches(item.name, class_names, n=2)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            problems.append((Kind.UNKNOWN_CLASS, where + hint))
            continue
        box, kinds = fit_box(item.box_pixels, size)
        ymin, xmin, ymax, xmax = item.box_pixels
        text = f"{where}: x {xmin:g}…{xmax:g}, y {ymin:g}…{ymax:g} of {size[1]}×{size[0]}"
        problems += [(kind, text) for kind in kinds]
        if box is not None:
            objects.append(VocItem(item.name, box, item.is_difficult, item.is_truncated))
    return objects, problems
