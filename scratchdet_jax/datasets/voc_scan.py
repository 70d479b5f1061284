"""Reads and checks a folder of images and VOC annotations, file by file."""

import collections
import difflib
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from scratchdet_jax.datasets.checks import Broken, Checked, Journal, check_images
from scratchdet_jax.datasets.defects import Defect, Kind
from scratchdet_jax.datasets.objects import (
    Contents,
    UsableImage,
    VocItem,
    annotated_frame,
    fit_box,
    order_box,
    turned,
)
from scratchdet_jax.datasets.official import VOC_CLASSES
from scratchdet_jax.datasets.untrusted import (
    IMAGE_SUFFIXES,
    MAX_XML_BYTES,
    OutsideFolderError,
    as_text,
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
from scratchdet_jax.datasets.voc_lists import Lists, read_splits
from scratchdet_jax.datasets.voc_xml import VocAnnotation, VocObject, parse_annotation
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
    defects: list[Defect]
    notes: list[str]


class Listing(NamedTuple):
    """The files of a folder before any is opened.

    Attributes:
        layout: where the images and annotations are.
        files: the images and annotations, by id.
        lists: the splits.
        notes: decisions made for the user.
    """

    layout: Layout
    files: Files
    lists: Lists
    notes: list[str]


def list_folder(
    folder: Path,
    wanted: Sequence[str] | None,
    images: str | None = None,
    annotations: str | None = None,
) -> Listing:
    """Lists the files and the ids of the wanted splits; opens no image and no annotation.

    Args:
        folder: the folder, in one of the layouts of `voc_layout`.
        wanted: the splits to use; None: all.
        images: the folder of the images if it has an unknown name.
        annotations: the folder of the annotations if it has an unknown name.

    Raises:
        UserError: the folder does not exist, is not in a known layout, has a part that is a link
            to the outside, or lacks a wanted split.
    """
    layout = find_layout(folder, images, annotations)
    files = list_files(folder, layout)
    lists = read_splits(folder, layout, files, wanted)
    notes = []
    if layout.is_mixed:
        notes.append("each annotation is read from beside its image")
    elif not layout.is_standard:
        places = [printable(part.label) or "." for part in (layout.images, layout.annotations)]
        notes.append(f"images are read from {places[0]}, annotations from {places[1]}")
    if files.hidden_names:
        notes.append(
            f"hidden files of macOS, Windows and other tools are passed over: "
            f"{len(files.hidden_names):,}, such as {printable(files.hidden_names[0])}"
        )
    return Listing(layout, files, lists, notes + files.notes + lists.notes)


def fingerprint(
    listing: Listing, class_names: Sequence[str] | None, splits: Sequence[str] | None
) -> str:
    """Hashes the options, the lists, the annotations, and the images' names and file sizes."""
    layout, files, lists = listing.layout, listing.files, listing.lists
    options: list[Any] = [list(class_names or []), list(splits or []), lists.lines]
    if not layout.is_standard:
        options.append([layout.images.label, layout.annotations.label])
    digest = hashlib.sha256(json.dumps(options).encode())
    used = {image_id for split in lists.splits for image_id in split.ids}
    for name, path in _hashed(layout.annotations, files.annotations, files.hidden[1], used):
        digest.update(b"\0" + os.fsencode(name) + b"\0")
        try:
            digest.update(read_inside(path, layout.annotations.root, MAX_XML_BYTES))
        except ValueError as error:
            digest.update(str(error).encode())
    for name, path in _hashed(layout.images, files.images, files.hidden[0], used):
        size = path.stat().st_size if path.exists() else -1
        digest.update(b"\0" + os.fsencode(name) + f"\0{size}".encode())
    return digest.hexdigest()


def _hashed(
    part: Part, files: Mapping[str, Path], hidden: Mapping[str, Path], used: Collection[str]
) -> Iterator[tuple[str, Path]]:
    """Yields files that identify the input, with their names: all but unused ones in subfolders."""
    for image_id, path in sorted({**hidden, **files}.items()):
        name = path.relative_to(part.path).as_posix()
        if "/" not in name or image_id in used:
            yield name, path


def scan(listing: Listing, class_names: Sequence[str] | None, journal: Journal) -> Contents:
    """Reads, decodes and checks everything."""
    files, root = listing.files, listing.layout.images.root
    defects, notes = list(files.defects), list(listing.notes)
    listed = _listed_splits(listing, defects, notes)
    ids = dict.fromkeys(i for members in listed.values() for i in members if i in files.images)
    annotations = _read_annotations(listing, ids, defects)
    paths = [files.images[image_id] for image_id in annotations]
    checked = check_images(paths, root, journal)
    images = {}
    for image_id, annotation in annotations.items():
        found = checked[files.images[image_id]]
        image, problems = _usable_image(listing, image_id, annotation, found, class_names)
        defects += problems
        if image is not None:
            images[image_id] = image
    splits = {split: [images[i] for i in m if i in images] for split, m in listed.items()}
    left_out = {split: len(members) - len(splits[split]) for split, members in listed.items()}
    for split, source, _, is_list in listing.lists.splits:
        if not splits[split]:
            reason = f"none of its images is usable; listed: {len(listed[split])}"
            place = os.path.dirname(source) if is_list else source
            where = f"{place or 'all images'} ({split})"
            defects.append(Defect.of(Kind.EMPTY_SPLIT, where, reason))
            del splits[split]
    names = _resolve_classes(
        {o.name for i in images.values() for o in i.objects}, class_names, notes
    )
    return Contents(
        splits=splits,
        roots=dict.fromkeys(splits, root),
        class_names=names,
        category_ids=None,
        left_out=left_out,
        notes=notes,
        defects=defects,
    )


def read_ground_truth(folder: Path, split: str) -> GroundTruth:
    """Reads the annotations of a split as `scan` does, but without the images.

    Raises:
        UserError: an error of `list_folder`, or the split has no usable annotation.
    """
    layout = find_annotations(folder)
    files = list_files(folder, layout)
    # An annotation without an image is also scored.
    files = files._replace(images={**files.annotations, **files.images})
    lists = read_splits(folder, layout, files, [split])
    (name, source, listed, _) = lists.splits[0]
    defects: list[Defect] = []
    for image_id, count in collections.Counter(listed).items():
        if count > 1:
            reason = f"{image_id} is listed {count} times"
            defects.append(Defect.of(Kind.LISTED_TWICE, source, reason))
        if image_id not in files.images:
            reason = f"{image_id} has no annotation in {layout.annotations.label}"
            defects.append(Defect.of(Kind.NO_ANNOTATION, source, reason))
    ids = [image_id for image_id in dict.fromkeys(listed) if image_id in files.images]
    listing = Listing(layout, files, lists, [])
    objects = {}
    for image_id, annotation in _read_annotations(listing, ids, defects).items():
        file = layout.label(files.annotations[image_id])
        objects[image_id] = tuple(_scored_objects(annotation, file, defects))
    if not objects:
        first = f"; the first: {defects[0].file}: {defects[0].reason}" if defects else ""
        raise UserError(f"{folder}: the split {split!r} has no usable annotation{first}")
    left_out = [image_id for image_id in dict.fromkeys(listed) if image_id not in objects]
    return GroundTruth(name, objects, left_out, defects, files.notes + lists.notes)


def _scored_objects(
    annotation: VocAnnotation, file: str, defects: list[Defect]
) -> Iterator[VocObject]:
    """Yields the usable objects with their corners in order; adds the rest to `defects`."""
    for number, item in enumerate(annotation.objects, start=1):
        where = f"object {number} ({item.name or 'no name'})"
        if item.box_pixels is None:
            defects.append(Defect.of(Kind.UNREADABLE_BOX, file, f"{where}: {item.problem}"))
            continue
        if item.problem:
            defects.append(Defect.of(Kind.FLAG, file, f"{where}: {item.problem}"))
        box, kinds = order_box(item.box_pixels)
        ymin, xmin, ymax, xmax = item.box_pixels
        text = f"{where}: x {xmin:g}…{xmax:g}, y {ymin:g}…{ymax:g}"
        if annotation.size:
            text += f" of {annotation.size[1]}×{annotation.size[0]}"
        defects += [Defect.of(kind, file, text) for kind in kinds]
        if box is not None:
            yield item._replace(box_pixels=box)


def _listed_splits(
    listing: Listing, defects: list[Defect], notes: list[str]
) -> dict[str, list[str]]:
    """Returns unique ids by split; adds missing and repeated ones to `defects`."""
    files, layout = listing.files, listing.layout
    splits: dict[str, list[str]] = {}
    for split, source, ids, is_list in listing.lists.splits:
        for image_id, count in collections.Counter(ids).items():
            if count > 1:
                reason = f"{image_id} is listed {count} times"
                defects.append(Defect.of(Kind.LISTED_TWICE, source, reason))
            if image_id not in files.images:
                where = source if is_list else layout.label(files.annotations[image_id])
                defects.append(_missing_image(where, image_id, layout.images.label))
        splits[split] = list(dict.fromkeys(ids))
    unlisted = len(files.images.keys() - {i for members in splits.values() for i in members})
    if unlisted:
        of = f" of {layout.images.label}" if layout.images.label else ""
        notes.append(f"images{of} in none of the splits used: {unlisted}")
    return splits


def _missing_image(source: str, image_id: str, folder: str) -> Defect:
    parts = PureWindowsPath(image_id)
    if parts.root or ".." in parts.parts:
        return Defect.of(Kind.OUT_OF_FOLDER, source, f"{image_id} is not an id but a path")
    place = f" in {folder}" if folder else ""
    reason = f"{image_id} has no image{place} ({', '.join(IMAGE_SUFFIXES)})"
    return Defect.of(Kind.NO_IMAGE, source, reason)


def _read_annotations(
    listing: Listing, ids: Iterable[str], defects: list[Defect]
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
            defects.append(Defect.of(Kind.NO_ANNOTATION, image_file, f"there is no {missing}"))
            continue
        path = files.annotations[image_id]
        file = layout.label(path)
        try:
            annotation = parse_annotation(read_inside(path, layout.annotations.root, MAX_XML_BYTES))
        except OutsideFolderError as error:
            defects.append(Defect.of(Kind.OUT_OF_FOLDER, file, str(error)))
            continue
        except ValueError as error:
            defects.append(Defect.of(Kind.BROKEN_ANNOTATION, file, str(error)))
            continue
        if annotation.misplaced:
            defects.append(Defect.of(Kind.MISPLACED, file, "; ".join(annotation.misplaced)))
            continue
        if annotation.repairs:
            defects.append(Defect.of(Kind.TAGS, file, ", ".join(annotation.repairs)))
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


def _usable_image(
    listing: Listing,
    image_id: str,
    annotation: VocAnnotation,
    checked: Checked,
    class_names: Sequence[str] | None,
) -> tuple[UsableImage | None, list[Defect]]:
    """Returns the image with its usable objects (None if it is unusable), and its defects."""
    layout, path = listing.layout, listing.files.images[image_id]
    if isinstance(checked, Broken):
        return None, [Defect.of(checked.kind, layout.label(path), checked.reason)]
    file = layout.label(listing.files.annotations[image_id])
    frame = annotated_frame(annotation.size, checked.header)
    objects, problems = _usable_objects(annotation, frame.size, class_names)
    if frame.problem:
        problems.insert(0, frame.problem)
    image = UsableImage(
        path,
        checked.stamp,
        as_text(path.relative_to(layout.images.path).as_posix()),
        image_id,
        checked.header.orientation,
        checked.header.displayed_size,
        [item._replace(box=turned(item.box, frame.orientation)) for item in objects],
    )
    return image, [Defect.of(kind, file, text) for kind, text in problems]


def _usable_objects(
    annotation: VocAnnotation, size: tuple[int, int], class_names: Sequence[str] | None
) -> tuple[list[VocItem], list[tuple[Kind, str]]]:
    """Normalises the objects' boxes to an image of (height, width); returns the defects found."""
    objects, problems = [], []
    for number, item in enumerate(annotation.objects, start=1):
        where = f"object {number} ({item.name or 'no name'})"
        if item.box_pixels is None:
            problems.append((Kind.UNREADABLE_BOX, f"{where}: {item.problem}"))
            continue
        if flag := item.problem or item.truncated_problem:
            problems.append((Kind.FLAG, f"{where}: {flag}"))
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
