"""Reads and checks a folder of images and VOC annotations, file by file."""

import collections
import difflib
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from scratchdet_jax.datasets.objects import (
    Box,
    Broken,
    Contents,
    Defects,
    Item,
    Kind,
    UsableImage,
    annotated_frame,
    check_images,
    fit_box,
    join_splits,
    turned,
    unreadable,
)
from scratchdet_jax.datasets.untrusted import (
    IMAGE_SUFFIXES,
    MAX_XML_BYTES,
    as_text,
    content_for_hash,
    file_size,
    printable,
    read_inside,
)
from scratchdet_jax.datasets.voc_layout import (
    Files,
    Layout,
    Part,
    find_annotations,
    find_layout,
    list_files,
)
from scratchdet_jax.datasets.voc_lists import SplitList, read_splits
from scratchdet_jax.datasets.voc_xml import VOC_CLASSES, VocAnnotation, VocObject, parse_annotation
from scratchdet_jax.errors import UserError


class GroundTruth(NamedTuple):
    """The annotated objects of a split as scoring needs them; no image is opened.

    Attributes:
        split: the name of the split in the data set that `prepare voc` makes.
        objects: by image id, with corners in order but not clipped to the image.
        left_out: ids of images that the split lists but whose annotation cannot be used.
        defects: everything that was left out or repaired.
        notes: decisions made for the user.
    """

    split: str
    objects: dict[str, tuple[VocObject, ...]]
    left_out: list[str]
    defects: Defects
    notes: list[str]


class Listing(NamedTuple):
    """The files of a folder before any is opened.

    Attributes:
        layout: where the images and annotations are.
        files: the images and annotations, by id.
        splits: the ids of each.
        lines: the lines of the lists of ids, by file name.
        notes: decisions made for the user.
    """

    layout: Layout
    files: Files
    splits: list[SplitList]
    lines: dict[str, list[str]]
    notes: list[str]


def list_folder(
    folder: Path,
    wanted: Sequence[str] | None,
    images: str | None = None,
    annotations: str | None = None,
) -> Listing:
    """Lists the files and the ids of the wanted splits; opens no image and no annotation.

    `wanted`: the splits to use; None: all. `images` and `annotations`: see `find_layout`.

    Raises:
        UserError: the folder does not exist, is not in a known layout, has a part that is a link
            to the outside, or lacks a wanted split.
    """
    layout = find_layout(folder, images, annotations)
    files = list_files(folder, layout)
    splits, lines, choices = read_splits(folder, layout, files, wanted)
    notes = []
    if layout.is_mixed:
        notes.append("each annotation is read from beside its image")
    elif not layout.is_standard:
        places = [printable(part.label) or "." for part in (layout.images, layout.annotations)]
        notes.append(f"images are read from {places[0]}, annotations from {places[1]}")
    if files.hidden:
        notes.append(
            f"hidden files of macOS, Windows and other tools are passed over: "
            f"{len(files.hidden):,}, such as {printable(files.hidden[0])}"
        )
    return Listing(layout, files, splits, lines, notes + files.notes + choices)


def fingerprint(
    listing: Listing, class_names: Sequence[str] | None, splits: Sequence[str] | None
) -> str:
    """Hashes the options, the lists, the annotations, and the images' names and file sizes."""
    layout, files = listing.layout, listing.files
    options: list[Any] = [list(class_names or []), list(splits or []), listing.lines]
    if not layout.is_standard:
        options.append([layout.images.label, layout.annotations.label])
    digest = hashlib.sha256(json.dumps(options).encode())
    used = {image_id for split in listing.splits for image_id in split.ids}
    for name, path in _hashed(layout.annotations, files.annotations, used):
        digest.update(b"\0" + os.fsencode(name) + b"\0")
        digest.update(content_for_hash(path, layout.annotations.root, MAX_XML_BYTES))
    for name, path in _hashed(layout.images, files.images, used):
        digest.update(b"\0" + os.fsencode(name) + f"\0{file_size(path)}".encode())
    return digest.hexdigest()


def _hashed(
    part: Part, files: Mapping[str, Path], used: Collection[str]
) -> Iterator[tuple[str, Path]]:
    """Yields files that identify the input, with their names: all but unused ones in subfolders."""
    for image_id, path in sorted(files.items()):
        name = path.relative_to(part.path).as_posix()
        if "/" not in name or image_id in used:
            yield name, path


def scan(listing: Listing, class_names: Sequence[str] | None) -> Contents:
    """Reads, decodes and checks everything."""
    files, layout, root = listing.files, listing.layout, listing.layout.images.root
    defects, notes = Defects(files.defects), list(listing.notes)
    listed = {}
    for members in listing.splits:
        listed[members.split] = _unique_ids(members, listing, defects)
    ids = dict.fromkeys(i for members in listed.values() for i in members)
    if unlisted := len(files.images.keys() - ids.keys()):
        of = f" of {layout.images.label}" if layout.images.label else ""
        notes.append(f"images{of} in none of the splits used: {unlisted}")
    annotations = _read_annotations(listing, [i for i in ids if i in files.images], defects)
    checked = check_images([files.images[image_id] for image_id in annotations], root)
    images = {}
    for image_id, annotation in annotations.items():
        path, file = files.images[image_id], layout.label(files.annotations[image_id])
        found = checked[path]
        if isinstance(found, Broken):
            defects.note(found.kind, layout.label(path), found.reason)
            continue
        size, orientation = annotated_frame(annotation.size, found.header, defects, file, "")
        items = []
        for item, box in _read_objects(annotation, size, True, file, defects, class_names):
            flags = {"is_difficult": item.is_difficult, "is_truncated": item.is_truncated}
            items.append(Item(item.name, turned(box, orientation), item.is_difficult, flags))
        name = as_text(path.relative_to(layout.images.path).as_posix())
        images[image_id] = UsableImage(path, name, image_id, *found, items)
    splits = {}
    for split, source, _, is_list in listing.splits:
        place = os.path.dirname(source) if is_list else source
        usable = [images[i] for i in listed[split] if i in images]
        where = f"{place or 'all images'} ({split})"
        splits[split] = where, len(listed[split]), usable
    names = _resolve_classes(
        {o.name for i in images.values() for o in i.objects}, class_names, notes
    )
    return join_splits(splits, names, None, notes, defects)


def read_ground_truth(folder: Path, split: str) -> GroundTruth:
    """Reads the annotations of a split as `scan` does, but without the images.

    Raises:
        UserError: an error of `list_folder`, or the split has no usable annotation.
    """
    layout = find_annotations(folder)
    files = list_files(folder, layout)
    # An annotation without an image is also scored.
    files = files._replace(images={**files.annotations, **files.images})
    (members,), lines, notes = read_splits(folder, layout, files, [split])
    listing = Listing(layout, files, [members], lines, files.notes + notes)
    defects = Defects()
    listed = _unique_ids(members, listing, defects, Kind.NO_ANNOTATION)
    objects = {}
    ids = [image_id for image_id in listed if image_id in files.images]
    for image_id, annotation in _read_annotations(listing, ids, defects).items():
        file = layout.label(files.annotations[image_id])
        found = _read_objects(annotation, annotation.size, False, file, defects)
        objects[image_id] = tuple(item._replace(box_pixels=box) for item, box in found)
    if not objects:
        first = f"; the first: {defects[0].file}: {defects[0].reason}" if defects else ""
        raise UserError(f"{folder}: the split {split!r} has no usable annotation{first}")
    left_out = [image_id for image_id in listed if image_id not in objects]
    return GroundTruth(members.split, objects, left_out, defects, listing.notes)


def _unique_ids(
    members: SplitList, listing: Listing, defects: Defects, missing: Kind = Kind.NO_IMAGE
) -> list[str]:
    """Returns the ids of a split, each once; adds missing and repeated ones to `defects`."""
    files, layout = listing.files, listing.layout
    for image_id, count in collections.Counter(members.ids).items():
        if count > 1:
            defects.note(Kind.LISTED_TWICE, members.source, f"{image_id} is listed {count} times")
        if image_id in files.images:
            continue
        listed = members.is_list
        where = members.source if listed else layout.label(files.annotations[image_id])
        path = PureWindowsPath(image_id)
        if path.root or ".." in path.parts:
            kind, reason = Kind.OUT_OF_FOLDER, f"{image_id} is not an id but a path"
        elif missing == Kind.NO_ANNOTATION:
            kind, reason = missing, f"{image_id} has no annotation in {layout.annotations.label}"
        else:
            place = f" in {layout.images.label}" if layout.images.label else ""
            kind, reason = missing, f"{image_id} has no image{place} ({', '.join(IMAGE_SUFFIXES)})"
        defects.note(kind, where, reason)
    return list(dict.fromkeys(members.ids))


def _read_annotations(
    listing: Listing, ids: Iterable[str], defects: Defects
) -> dict[str, VocAnnotation]:
    """Returns the annotations that can be relied on, by image id."""
    layout, files = listing.layout, listing.files
    annotations = {}
    for image_id in ids:
        if image_id not in files.annotations:
            image_file = layout.label(files.images[image_id])
            missing = f"{layout.annotations.label}/{image_id}.xml"
            if layout.annotations == layout.images:
                missing = f"{os.path.splitext(image_file)[0]}.xml"
            defects.note(Kind.NO_ANNOTATION, image_file, f"there is no {missing}")
            continue
        path = files.annotations[image_id]
        file = layout.label(path)
        try:
            annotation = parse_annotation(read_inside(path, layout.annotations.root, MAX_XML_BYTES))
        except ValueError as error:
            defects.note(unreadable(error, Kind.BROKEN_ANNOTATION), file, str(error))
            continue
        if annotation.misplaced:
            defects.note(Kind.MISPLACED, file, "; ".join(annotation.misplaced))
            continue
        if annotation.repairs:
            defects.note(Kind.TAGS, file, ", ".join(annotation.repairs))
        annotations[image_id] = annotation
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


def _read_objects(
    annotation: VocAnnotation,
    size: tuple[int, int] | None,
    clipped: bool,
    file: str,
    defects: Defects,
    class_names: Sequence[str] | None = None,
) -> Iterator[tuple[VocObject, Box]]:
    """Yields the usable objects of the chosen classes with their boxes; adds the rest to `defects`.

    `size` is the (height, width) that the boxes refer to, None if it is unknown; if `clipped`, they
    are clipped to it and normalised. `class_names` are the chosen classes, None for all.
    """
    for number, item in enumerate(annotation.objects, start=1):
        where = f"object {number} ({item.name or 'no name'})"
        if item.problem:
            kind = Kind.UNREADABLE_BOX if item.box_pixels is None else Kind.FLAG
            defects.note(kind, file, f"{where}: {item.problem}")
        if item.box_pixels is None:
            continue
        if class_names is not None and item.name not in class_names:
            close = difflib.get_close_matches(item.name, class_names, n=2)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            defects.note(Kind.UNKNOWN_CLASS, file, where + hint)
            continue
        box, kinds = fit_box(item.box_pixels, size if clipped else None)
        ymin, xmin, ymax, xmax = item.box_pixels
        of = f" of {size[1]}×{size[0]}" if size else ""
        text = f"{where}: x {xmin:g}…{xmax:g}, y {ymin:g}…{ymax:g}{of}"
        for kind in kinds:
            defects.note(kind, file, text)
        if box is not None:
            yield item, box
