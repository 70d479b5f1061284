"""The formats of detections: the VOC devkit's files and COCO's results file.

Labels are contiguous, 1…C; COCO's category ids are not (80 classes use ids up to 90).
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from scratchdet_jax.data import coco_classes
from scratchdet_jax.data.records import parse_spec
from scratchdet_jax.evaluation.detections import ImageDetections, flatten_detections
from scratchdet_jax.files import write_text_atomically
from scratchdet_jax.paths import user_path

# Splits whose name in detection files is not that of the data set.
DEVKIT_SPLITS = {"validation": "val", "train+validation": "trainval"}

_MAX_FILE_NAME = 255  # bytes, on all common file systems
# What `escaped` encodes. Lone surrogates cannot be written in a file name.
_UNSAFE = re.compile(r"[/\\\x00-\x1f\x7f\ud800-\udfff]|%(?=[0-9A-Fa-f]{2})")


def split_name(spec: str) -> str:
    """Returns the devkit's name of a split for detection files: val, test, trainval."""
    splits = dict.fromkeys(part.split for part in parse_spec(spec))
    name = re.sub(r"[^\w+.-]+", "_", "+".join(splits)).strip("_")
    return DEVKIT_SPLITS.get(name, name)


def escaped(class_name: str) -> str:
    """Writes a class name as part of a file name; no two names become the same.

    Slashes, backslashes and control characters are percent-encoded, and so is a percent sign that
    would be read as the start of a code: "car/truck" becomes "car%2Ftruck".
    """
    return _UNSAFE.sub(lambda found: quote(found[0], "", errors="surrogatepass"), class_name)


def unescaped(text: str) -> str:
    """Returns the class name of which `escaped` made the text."""
    try:
        return unquote(text, errors="surrogatepass")
    except UnicodeDecodeError:  # not made by `escaped`
        return text


def voc_file(directory: str | Path, split: str, class_name: str) -> Path:
    """Returns the devkit's file of one class's detections: comp4_det_SPLIT_CLASS.txt.

    The class name is `escaped`. One that is too long for a file name is cut, and "%" and a hash of
    the name follow.
    """
    prefix, name = f"comp4_det_{split}_", escaped(class_name)
    room = _MAX_FILE_NAME - len(f"{prefix}.txt".encode("utf-8", "surrogateescape"))
    if len(name.encode()) > room:
        digest = hashlib.sha256(class_name.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        name = name.encode()[: max(room - 25, 0)].decode(errors="ignore") + f"%{digest}"
    return user_path(directory) / f"{prefix}{name}.txt"


def write_voc(
    directory: str | Path,
    detections: Mapping[str, ImageDetections],
    class_names: Sequence[str],
    split: str,
) -> None:
    """Writes the devkit's files: one per class, with lines "image_id score xmin ymin xmax ymax".

    The devkit counts pixels from 1. So do our pixel boxes: annotations are divided by the image
    size without subtracting 1, and multiplied back.

    A class without detections gets an empty file, because the evaluation server requires one per
    class. See `voc_file` for names that cannot be file names.

    Raises:
        UserError: a label is out of range, or a value is not finite.
    """
    flatten_detections(detections, detections, len(class_names))  # checks them
    lines: dict[str, list[str]] = {name: [] for name in class_names}
    for image_id, found in detections.items():
        for name, more in voc_lines(image_id, found, class_names).items():
            lines[name] += more
    user_path(directory).mkdir(parents=True, exist_ok=True)
    for name in class_names:
        text = "".join(line + "\n" for line in lines[name])
        write_text_atomically(voc_file(directory, split, name), text)


def voc_lines(
    image_id: str, found: ImageDetections, class_names: Sequence[str]
) -> dict[str, list[str]]:
    """Returns the lines of an image by class: "image_id score xmin ymin xmax ymax", in pixels.

    Coordinates have three decimals, scores nine digits, enough to restore a float32 exactly.
    """
    lines: dict[str, list[str]] = {}
    columns = (column.tolist() for column in found)
    for (ymin, xmin, ymax, xmax), score, label in zip(*columns, strict=True):
        if label > 0:
            numbers = f"{score:.9g} {xmin:.3f} {ymin:.3f} {xmax:.3f} {ymax:.3f}"
            lines.setdefault(class_names[label - 1], []).append(f"{image_id} {numbers}")
    return lines


def category_ids(class_names: Sequence[str]) -> tuple[int, ...]:
    """Returns the category id of each label when there is no annotation file.

    COCO's own ids if the classes are COCO's 80 (its evaluation server accepts no others), else 1…C.
    """
    if set(class_names) == set(coco_classes.IDS):
        return tuple(coco_classes.IDS[name] for name in class_names)
    return tuple(range(1, len(class_names) + 1))


def write_coco(
    path: str | Path, detections: Mapping[str, ImageDetections], category_ids: Sequence[int]
) -> None:
    """Writes COCO's results file: a list of {image_id, category_id, bbox (x, y, w, h), score}.

    `coco_entries` says how values are rounded. An image id that is a decimal number is written as a
    number, unless two ids are the same number (such as 1 and 01): then all ids are written as text.
    Label i has the category `category_ids[i − 1]`.

    Raises:
        UserError: a label is out of range or a value is not finite.
    """
    flatten_detections(detections, detections, len(category_ids))  # checks them
    ids: list[int | str] = [as_number(name) for name in detections]
    if len(set(ids)) < len(ids):
        ids = list(detections)
    results = [
        entry
        for image_id, found in zip(ids, detections.values(), strict=True)
        for entry in coco_entries(image_id, found, category_ids)
    ]
    path = user_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, json.dumps(results))


def coco_entries(
    image_id: int | str, found: ImageDetections, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Returns the entries of an image in a results file; a bbox is (x, y, width, height).

    Coordinates are rounded to a thousandth of a pixel; scores keep nine digits, enough to restore a
    float32 exactly.
    """
    columns = (column.tolist() for column in found)
    return [
        {
            "image_id": image_id,
            "category_id": int(category_ids[label - 1]),
            "bbox": [round(value, 3) for value in (xmin, ymin, xmax - xmin, ymax - ymin)],
            "score": float(f"{score:.9g}"),
        }
        for (ymin, xmin, ymax, xmax), score, label in zip(*columns, strict=True)
        if label > 0
    ]


def as_number(image_id: str) -> int | str:
    """Returns an image id as a number if it is a decimal number, as COCO's are."""
    return int(image_id) if re.fullmatch("-?[0-9]+", image_id) else image_id
