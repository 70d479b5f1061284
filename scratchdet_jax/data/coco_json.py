"""Reads COCO annotation files without trusting them."""

import collections
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import repr as brief
from typing import Any, NamedTuple

from scratchdet_jax.data.untrusted import MAX_JSON_BYTES, printable, read_inside
from scratchdet_jax.errors import UserError

_LISTS = ("images", "annotations", "categories")
# Other fields are dropped during parsing to save memory: segmentations are most of a file.
_FIELDS = {
    *_LISTS,
    "id",
    "file_name",
    "width",
    "height",
    "name",
    "image_id",
    "category_id",
    "bbox",
    "area",
    "iscrowd",
}
_INT64 = 2**63
_MAX_AREA = 2.0**62  # pixels; it has to fit an int64


class CocoFile(NamedTuple):
    """An annotation file: its checked category table and its unchecked entries.

    Attributes:
        path: the file.
        digest: SHA-256 of its bytes.
        images: entries of any type and content.
        annotations: entries of any type and content.
        categories: (id, name) sorted by id; ids and names are unique.
    """

    path: Path
    digest: str
    images: list[Any]
    annotations: list[Any]
    categories: tuple[tuple[int, str], ...]


def read_coco(path: Path) -> CocoFile:
    """Reads an annotation file; segmentations are dropped.

    Raises:
        UserError: the file is missing, larger than `untrusted.MAX_JSON_BYTES`, not JSON, too deeply
            nested or not a COCO annotation file, or its categories are unusable.
    """
    try:
        # A link is followed, because the user named this very file.
        file = path.resolve(strict=True)
        data = read_inside(file, file.parent, MAX_JSON_BYTES)
        text = data.decode(json.detect_encoding(data), "surrogateescape").removeprefix("\ufeff")
        content = json.loads(text, object_pairs_hook=_slim)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except RecursionError:
        raise UserError(f"{path} cannot be read: its JSON is nested too deeply") from None
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a link to itself
        reason = printable(getattr(error, "strerror", None) or str(error))
        raise UserError(f"{path} cannot be read as COCO annotations: {reason}") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in _LISTS):
        raise UserError(
            f"{path} is not a COCO annotation file: it must be an object with the lists 'images', "
            "'annotations' and 'categories' (test sets have no annotations)"
        )
    categories = tuple(sorted(_category(path, i, c) for i, c in enumerate(content["categories"])))
    for position, what in enumerate(("ids", "names")):
        counts = collections.Counter(category[position] for category in categories)
        if twice := [value for value, count in counts.items() if count > 1]:
            value = printable(brief(twice[0]))
            raise UserError(
                f"{path}: the category {what} must be unique, but {value} is there twice"
            )
    if not categories:
        raise UserError(f"{path} has no categories: there is nothing to detect")
    digest = hashlib.sha256(data).hexdigest()
    return CocoFile(path, digest, content["images"], content["annotations"], categories)


def integer(value: Any) -> int | None:
    """The value as an integer if it is one of 64 bits (12.0 counts as 12), else None."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -_INT64 <= value < _INT64:
        return None
    return value


def numbers(values: Any, count: int) -> tuple[float, ...] | None:
    """The values as floats if they are `count` finite numbers, else None."""
    if not isinstance(values, list) or len(values) != count:
        return None
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        return None
    try:
        found = tuple(float(v) for v in values)
    except OverflowError:
        return None
    return found if all(math.isfinite(v) for v in found) else None


def stated_area(annotation: Mapping[str, Any]) -> float | None:
    """The area of an annotation in pixels; None if it is missing or unusable."""
    found = numbers([annotation.get("area")], 1)
    return found[0] if found and 0 <= found[0] < _MAX_AREA else None


def crowd_flag(annotation: Mapping[str, Any]) -> bool | None:
    """The flag iscrowd of an annotation, False if it is missing; None if it is unusable."""
    flag = annotation.get("iscrowd", 0)
    return bool(flag) if isinstance(flag, (int, float)) and flag in (0, 1) else None


def _slim(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in pairs if key in _FIELDS}


def _category(path: Path, position: int, entry: Any) -> tuple[int, str]:
    number = integer(entry.get("id")) if isinstance(entry, dict) else None
    name = entry.get("name") if isinstance(entry, dict) else None
    name = " ".join(name.split()) if isinstance(name, str) else ""  # names are stored one per line
    try:
        name.encode()
    except UnicodeEncodeError:
        name = ""
    if number is None or not name:
        raise UserError(
            f"{path}: categories[{position}] must have an integer 'id' and a 'name', but it is "
            f"{printable(brief(entry))}"
        )
    return number, name
