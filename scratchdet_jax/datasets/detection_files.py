"""Reads files of detections for scoring: the VOC devkit's, and COCO's results files."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import numpy as np

from scratchdet_jax.datasets.coco_json import image_key, integer, numbers
from scratchdet_jax.datasets.untrusted import MAX_JSON_BYTES, read_named
from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation.detections import ImageDetections
from scratchdet_jax.evaluation.formats import unescaped, voc_file


def classes_of_files(directory: Path, split: str, known: Collection[str]) -> list[str]:
    """Returns the classes that have a file comp4_det_SPLIT_CLASS.txt.

    The `known` classes, which the ground truth has, may have names that had to be cut.
    """
    prefix = f"comp4_det_{split}_"
    of_known = {voc_file(directory, split, name).name: name for name in known}
    return [
        of_known.get(path.name, unescaped(path.stem.removeprefix(prefix)))
        for path in sorted(directory.glob("*.txt"))
        if path.name.startswith(prefix)
    ]


def read_voc_files(
    directory: Path, split: str, class_names: Sequence[str]
) -> dict[str, ImageDetections]:
    """Reads the files of `formats.write_voc`; a class whose file is missing has no detections.

    Raises:
        UserError: the directory or all of the files are missing, or a line is malformed.
    """
    if not directory.is_dir():
        raise UserError(f"detections folder {str(directory)!r} does not exist")
    rows: dict[str, list[tuple[float, ...]]] = {}
    present = 0
    for label, name in enumerate(class_names, start=1):
        path = voc_file(directory, split, name)
        if not path.is_file():
            continue
        present += 1
        for image_id, values in _read_class(path):
            rows.setdefault(image_id, []).append((*values, label))
    if not present:
        raise UserError(
            f"folder {str(directory)!r} has no file comp4_det_{split}_CLASS.txt for any class: "
            "check the folder and the split"
        )
    detections = {}
    for image_id, image_rows in rows.items():
        table = np.array(image_rows, np.float64)
        detections[image_id] = ImageDetections(
            table[:, [2, 1, 4, 3]], table[:, 0], table[:, 5].astype(np.int64)
        )
    return detections


def _read_class(path: Path) -> list[tuple[str, tuple[float, ...]]]:
    """Reads one file; each line becomes (image id, (score, xmin, ymin, xmax, ymax))."""
    rows: list[tuple[str, tuple[float, ...]]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"detections file {str(path)!r} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            # From the right, because an image id may contain spaces.
            image_id, *fields = line.strip().rsplit(maxsplit=5)
            score, xmin, ymin, xmax, ymax = map(float, fields)
        except ValueError:
            raise UserError(
                f"{path}, line {number}: {line.strip()[:80]!r} is not "
                "'image_id score xmin ymin xmax ymax'"
            ) from None
        if not np.isfinite([score, xmin, ymin, xmax, ymax]).all():
            raise UserError(f"{path}, line {number}: the score or the box is not finite")
        rows.append((image_id, (score, xmin, ymin, xmax, ymax)))
    return rows


def read_coco_results(path: Path, categories: Collection[int]) -> dict[str, list[dict[str, Any]]]:
    """Reads a COCO results file.

    `categories` are the category ids of the annotation file.

    Returns:
        By image id, as text: {"category_id", "bbox": [x, y, width, height] in pixels, "score"}.

    Raises:
        UserError: the file is missing or malformed, or has a category id that is not listed.
    """
    content, _ = read_named(path, MAX_JSON_BYTES, json.loads, "JSON")
    if not isinstance(content, list):
        raise UserError(f"{path} is not a COCO results file: it must be a list of detections")
    found: dict[str, list[dict[str, Any]]] = {}
    for position, entry in enumerate(content):
        try:
            image_id, row = _read_entry(entry, categories)
        except ValueError as error:
            raise UserError(f"{path}: detections[{position}]: {error}") from None
        found.setdefault(image_id, []).append(row)
    return found


def _read_entry(entry: Any, categories: Collection[int]) -> tuple[str, dict[str, Any]]:
    """Returns the image id of an entry, and its other fields; a ValueError says what is wrong."""
    fields = entry if isinstance(entry, dict) else {}
    image_id, category = image_key(fields.get("image_id")), integer(fields.get("category_id"))
    box, score = numbers(fields.get("bbox"), 4), numbers([fields.get("score")], 1)
    if image_id is None or category is None or box is None or score is None:
        raise ValueError(
            f"it is {brief(entry)}; it must have an image_id, a category_id, a bbox of four finite "
            "numbers x, y, width, height, and a finite score"
        )
    if category not in categories:
        raise ValueError(f"category id {category} is not in the category table")
    return str(image_id), {"category_id": category, "bbox": list(box), "score": score[0]}
