"""Reading and checking a folder in VOC layout, file by file."""

import collections
import difflib
import hashlib
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from scratchdet_jax.data.builders.voc_report import Defect, Kind, Report
from scratchdet_jax.data.loading import decode_image
from scratchdet_jax.data.voc_xml import VocAnnotation, VocObject, parse_annotation
from scratchdet_jax.errors import UserError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_LABELLED_LINE = re.compile(r"\S+\s+(-1|0|1)")  # of per-class lists such as car_train.txt
# A marker in a JPEG stream: not a stuffed 0xFF, a restart marker or a fill byte.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


class Folder(NamedTuple):
    """The files of a folder: image and annotation file by id, and the lists of ids."""

    path: Path
    images: dict[str, Path]
    annotations: dict[str, Path]
    lists: dict[str, list[str]]  # file name → ids as listed; empty without plain lists


class Object(NamedTuple):
    """A usable object; ``box`` is (ymin, xmin, ymax, xmax) in [0, 1], of positive area."""

    name: str
    box: tuple[float, float, float, float]
    is_difficult: bool
    is_truncated: bool


class Contents(NamedTuple):
    """What goes into the data set: objects by image id, and ids by split."""

    objects: dict[str, list[Object]]
    splits: dict[str, list[str]]


def list_folder(folder: Path, wanted: Sequence[str] | None) -> Folder:
    """Lists the files, and the ids of the wanted splits; opens neither image nor annotation."""
    for part in ("JPEGImages", "Annotations"):
        if not (folder / part).is_dir():
            inside = sorted(str(p.parent) for p in folder.glob("*/JPEGImages"))
            hint = f"; did you mean {' or '.join(inside)}?" if inside else ""
            raise UserError(
                f"{folder} is not in VOC layout: it has no folder {part}{hint or ' in it'}"
            )
    images: dict[str, Path] = {}
    for path in sorted((folder / "JPEGImages").iterdir(), key=_preference):
        if path.suffix.lower() in _IMAGE_SUFFIXES:
            images.setdefault(path.stem, path)
    annotations = {path.stem: path for path in sorted((folder / "Annotations").glob("*.xml"))}
    lists = {}
    for path in sorted((folder / "ImageSets" / "Main").glob("*.txt")):
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        ids = [line.strip() for line in lines if line.strip()]
        if not ids or not all(_LABELLED_LINE.fullmatch(line) for line in ids):
            lists[path.name] = ids
    if wanted is not None:
        known = [name.removesuffix(".txt") for name in lists] or ["train"]
        for split in wanted:
            if split not in known:
                raise UserError(f"{folder} has no split {split!r}; it has {', '.join(known)}")
        lists = {f"{s}.txt": lists[f"{s}.txt"] for s in wanted if f"{s}.txt" in lists}
    return Folder(folder, images, annotations, lists)


def fingerprint(
    files: Folder, class_names: Sequence[str] | None, splits: Sequence[str] | None
) -> str:
    """Changes with the choices, a list, an annotation, or an image's name or size in bytes."""
    choices = [list(class_names or []), list(splits or []), files.lists]
    digest = hashlib.sha256(json.dumps(choices).encode())
    for path in files.annotations.values():
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    for path in files.images.values():
        digest.update(f"\0{path.name}\0{path.stat().st_size}".encode())
    return digest.hexdigest()


def scan(files: Folder, class_names: Sequence[str] | None) -> tuple[Contents, Report]:
    """Reads, decodes and checks everything; the report lacks only name, place and fingerprint."""
    defects, notes = _double_images(files), []
    listed = _listed_splits(files, defects, notes)
    ids = list(dict.fromkeys(i for split in listed.values() for i in split))
    objects: dict[str, list[Object]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        results = threads.map(lambda i: _read_image(files, i, class_names), ids)
        for image_id, (found, problems) in zip(
            ids, tqdm(results, "checking images", len(ids), unit="image", disable=None), strict=True
        ):
            defects += problems
            if found is not None:
                objects[image_id] = found
    splits = {}
    for split, members in listed.items():
        usable = [i for i in members if i in objects]
        if usable:
            splits[split] = usable
        else:
            reason = f"none of its {len(members)} images can be used"
            defects.append(Defect(Kind.EMPTY_SPLIT, f"ImageSets/Main ({split})", reason))
    names = _resolve_classes(objects, class_names, notes)
    found = [o for members in objects.values() for o in members]
    boxes = collections.Counter(o.name for o in found)
    report = Report(
        name="", folder=str(files.path.resolve()), directory="", fingerprint="",
        class_names=names,
        images={split: len(members) for split, members in splits.items()},
        boxes={name: boxes[name] for name in names},
        difficult=sum(o.is_difficult for o in found), notes=notes, defects=defects,
    )  # fmt: skip
    if not splits or not found:
        what = "box" if splits else "image"
        causes = ", ".join(f"{count} × {kind}" for kind, count in report.counts().items())
        first = f"; the first: {defects[0].file}: {defects[0].reason}" if defects else ""
        raise UserError(f"{files.path} holds no usable {what}: {causes or 'it is empty'}{first}")
    return Contents(objects, splits), report


def _preference(path: Path) -> tuple[str, int]:
    """Sorts files of one id by suffix, JPEG first."""
    suffix = path.suffix.lower()
    rank = _IMAGE_SUFFIXES.index(suffix) if suffix in _IMAGE_SUFFIXES else len(_IMAGE_SUFFIXES)
    return path.stem, rank


def _double_images(files: Folder) -> list[Defect]:
    used = set(files.images.values())
    return [
        Defect(Kind.TWO_IMAGES, f"JPEGImages/{path.name}",
               f"{files.images[path.stem].name} is used")
        for path in sorted((files.path / "JPEGImages").iterdir())
        if path.suffix.lower() in _IMAGE_SUFFIXES and path not in used
    ]  # fmt: skip


def _listed_splits(files: Folder, defects: list[Defect], notes: list[str]) -> dict[str, list[str]]:
    """Ids by split, each once and with an image; adds what is missing to ``defects``."""
    lists = files.lists
    if not lists:
        notes.append("ImageSets/Main has no plain list of ids: all images are the split train")
        lists = {"train.txt": sorted({*files.images, *files.annotations})}
    splits: dict[str, list[str]] = {}
    for filename, ids in lists.items():
        split = re.sub(r"[^\w-]", "_", filename.removesuffix(".txt"))
        split = "all_images" if split == "all" else split  # TFDS means something else by "all"
        if split != filename.removesuffix(".txt"):
            notes.append(f"the split of ImageSets/Main/{filename} is called {split}")
        for image_id, count in collections.Counter(ids).items():
            if count > 1:
                reason = f"{image_id} stands there {count} times"
                defects.append(Defect(Kind.LISTED_TWICE, f"ImageSets/Main/{filename}", reason))
        members = list(dict.fromkeys(ids))
        for image_id in members:
            if image_id not in files.images:
                defects.append(_missing_image(files, filename, image_id))
        splits[split] = [i for i in members if i in files.images]
    unlisted = len(files.images.keys() - {i for members in splits.values() for i in members})
    if unlisted:
        notes.append(f"{unlisted} images of JPEGImages are in no split that is used")
    return splits


def _missing_image(files: Folder, filename: str, image_id: str) -> Defect:
    reason = f"{image_id} has no image in JPEGImages ({', '.join(_IMAGE_SUFFIXES)})"
    if Path(image_id).suffix.lower() in _IMAGE_SUFFIXES:
        reason += "; ids are listed without the file's ending"
    source = f"ImageSets/Main/{filename}" if files.lists else f"Annotations/{image_id}.xml"
    return Defect(Kind.NO_IMAGE, source, reason)


def _resolve_classes(
    objects: dict[str, list[Object]], class_names: Sequence[str] | None, notes: list[str]
) -> tuple[str, ...]:
    if class_names is not None:
        return tuple(class_names)
    found = sorted({o.name for members in objects.values() for o in members})
    lowered = [name.lower() for name in found]
    for name in found:
        if lowered.count(name.lower()) > 1:
            notes.append(f"the class {name} differs from another one only in capitals")
    if found and set(found) <= set(VOC_CLASSES):
        if len(found) < len(VOC_CLASSES):
            notes.append(
                f"its {len(found)} classes are VOC's, so all of VOC's 20 are used, in VOC's order; "
                "to have only its own, give the class names"
            )
        return VOC_CLASSES
    return tuple(found)


def _read_image(
    files: Folder, image_id: str, class_names: Sequence[str] | None
) -> tuple[list[Object] | None, list[Defect]]:
    """The usable objects of one image (None: the image cannot be used) and its defects."""
    image_file = f"JPEGImages/{files.images[image_id].name}"
    annotation_file = f"Annotations/{image_id}.xml"
    if image_id not in files.annotations:
        return None, [Defect(Kind.NO_ANNOTATION, image_file, f"there is no {annotation_file}")]
    try:
        annotation = parse_annotation(files.annotations[image_id].read_bytes())
    except (ValueError, OSError) as error:
        return None, [Defect(Kind.BROKEN_ANNOTATION, annotation_file, str(error))]
    try:
        encoded = files.images[image_id].read_bytes()
        if not _is_whole(encoded):
            raise ValueError("the file ends before the image does")
        size = decode_image(encoded).shape[:2]
    except (ValueError, OSError) as error:
        return None, [Defect(Kind.BROKEN_IMAGE, image_file, str(error))]
    defects = []
    if annotation.size not in (None, size):
        height, width = annotation.size
        sizes = f"it says {width}×{height} pixels, the image has {size[1]}×{size[0]}"
        if annotation.size == size[::-1] and _shape_as_turned(encoded) == annotation.size:
            reason = f"{sizes} as stored; save it turned, without the EXIF tag"
            return None, [Defect(Kind.TURNED_IMAGE, image_file, reason)]
        defects.append(Defect(Kind.SIZE, annotation_file, sizes))
    objects, problems = _usable_objects(annotation, size, class_names)
    return objects, defects + [Defect(kind, annotation_file, text) for kind, text in problems]


def _shape_as_turned(encoded: bytes) -> tuple[int, int]:
    """(height, width) after the turn that EXIF asks for."""
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR).shape[:2]


def _is_whole(encoded: bytes) -> bool:
    """Whether a JPEG or PNG goes on to its end marker (OpenCV 4 fills up with grey)."""
    if encoded.startswith(b"\x89PNG"):
        return b"IEND\xaeB`\x82" in encoded
    if not encoded.startswith(b"\xff\xd8"):
        return True  # of another format: decoding will tell
    position = 2
    while marker := _JPEG_MARKER.search(encoded, position):
        if marker[0] == b"\xff\xd9":
            return True
        length = int.from_bytes(encoded[marker.end() : marker.end() + 2], "big")
        position = marker.end() + length
    return False


def _usable_objects(
    annotation: VocAnnotation, size: tuple[int, int], class_names: Sequence[str] | None
) -> tuple[list[Object], list[tuple[Kind, str]]]:
    """Objects with boxes normalised to an image of (height, width), and what was wrong."""
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
        box, kinds = _check_box(item, size)
        ymin, xmin, ymax, xmax = item.box_pixels
        text = f"{where}: x {xmin:g}…{xmax:g}, y {ymin:g}…{ymax:g} of {size[1]}×{size[0]}"
        problems += [(kind, text) for kind in kinds]
        if box is not None:
            objects.append(Object(item.name, box, item.is_difficult, item.is_truncated))
    return objects, problems


def _check_box(
    item: VocObject, size: tuple[int, int]
) -> tuple[tuple[float, float, float, float] | None, list[Kind]]:
    """The box over (height, width), ordered and clipped, or None; and what had to be done."""
    kinds = []
    corners = np.array(item.box_pixels).reshape(2, 2)  # rows: minimum, maximum; columns: y, x
    ordered = np.sort(corners, axis=0)
    if np.any(ordered != corners):
        kinds.append(Kind.SWAPPED)
    if np.any(ordered[0] == ordered[1]):
        return None, [Kind.NO_AREA]
    if np.any(ordered[0] >= size) or np.any(ordered[1] <= 0):
        return None, [Kind.OUTSIDE]
    clipped = np.clip(ordered, 0, size)
    if np.any(clipped != ordered):
        kinds.append(Kind.CLIPPED)
    return tuple(map(float, (clipped / size).ravel())), kinds
