"""Reads COCO annotation files without trusting them."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import repr as brief
from typing import Any, NamedTuple

from scratchdet_jax.datasets.untrusted import MAX_JSON_BYTES, printable, read_named
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
    """An annotation file: its category table and its unchecked entries.

    Attributes:
        path: the file.
        digest: SHA-256 of its bytes.
        images: entries of any type and content.
        annotations: entries of any type and content.
        categories: (id, name) as listed; the name is "" if it cannot be used.
        repaired: names that are not texts and were read as texts, in words.
        used: ids of the categories that annotations name.
        labelled: whether it has a list of annotations, which may be empty.
    """

    path: Path
    digest: str
    images: list[Any]
    annotations: list[Any]
    categories: tuple[tuple[int, str], ...]
    repaired: tuple[str, ...]
    used: frozenset[int]
    labelled: bool


def read_coco(path: Path, test_set: bool = False) -> CocoFile:
    """Reads an annotation file; segmentations are dropped.

    `test_set`: it may lack annotations altogether, as COCO's image_info_test….json.

    Raises:
        UserError: the file is missing, larger than `untrusted.MAX_JSON_BYTES`, not JSON, too deeply
            nested or not a COCO annotation file, or a category has no id.
    """

    def parse(text: str) -> Any:
        return json.loads(text, object_pairs_hook=_slim)

    content, data = read_named(path, MAX_JSON_BYTES, parse, "COCO annotations")
    labelled = not isinstance(content, dict) or "annotations" in content
    if isinstance(content, dict) and test_set:
        content.setdefault("annotations", [])
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in _LISTS):
        raise UserError(
            f"{path} is not a COCO annotation file: it must be an object with the lists 'images', "
            "'annotations' and 'categories'"
        )
    repaired: list[str] = []
    categories = [_category(path, i, c, repaired) for i, c in enumerate(content["categories"])]
    used = (integer(e.get("category_id")) for e in content["annotations"] if isinstance(e, dict))
    return CocoFile(
        path,
        hashlib.sha256(data).hexdigest(),
        content["images"],
        content["annotations"],
        tuple(categories),
        tuple(repaired),
        frozenset(number for number in used if number is not None),
        labelled,
    )


def join_categories(
    files: Sequence[CocoFile],
) -> tuple[tuple[tuple[int, str], ...], tuple[str, ...]]:
    """Returns the category table that files of one data set share.

    An entry that no annotation of any file uses does not matter: if it contradicts another one, it
    is left out.

    Returns:
        (id, name) sorted by id, unique ids and names; and the entries that are left out, in words.

    Raises:
        UserError: categories with annotations contradict each other, or none is left.
    """
    used = frozenset().union(*(file.used for file in files))
    source = " and ".join(str(file.path) for file in files)
    left_out = []

    def leave_out(number: int, problem: str) -> None:
        if number in used:
            raise UserError(
                f"{source}: {printable(problem)}, and annotations use it: every category must have "
                "its own id and name"
            )
        left_out.append(problem)

    names: dict[int, list[str]] = {}
    for file in files:
        for number, name in file.categories:
            if not name:
                leave_out(number, f"{printable(file.path.name)}: id {number}, without a name")
            elif name not in names.setdefault(number, []):
                names[number].append(name)
    ids: dict[str, list[int]] = {}
    for number, found in sorted(names.items()):
        if len(found) == 1:
            ids.setdefault(found[0], []).append(number)
        else:
            leave_out(number, f"id {number}, named {' and '.join(map(repr, found))}")
    chosen = {name: next((n for n in same if n in used), same[0]) for name, same in ids.items()}
    for name, same in ids.items():
        for number in same:
            if number != chosen[name]:
                leave_out(number, f"id {number}, named {name!r} like id {chosen[name]}")
    if not chosen:
        reason = f" ({left_out[0]})" if left_out else ""
        raise UserError(f"{files[0].path} has no categories{reason}: there is nothing to detect")
    return tuple(sorted((n, name) for name, n in chosen.items())), tuple(left_out)


def integer(value: Any) -> int | None:
    """Returns the value as an integer if it is one of 64 bits (12.0 counts as 12), else None."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -_INT64 <= value < _INT64:
        return None
    return value


def image_key(value: Any) -> int | str | None:
    """Returns an image id for scoring: like `integer`, but keeps text, as in other tools' files."""
    return value if isinstance(value, str) and value else integer(value)


def numbers(values: Any, count: int) -> tuple[float, ...] | None:
    """Returns the values as floats if they are `count` finite numbers, else None."""
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
    """Returns the area of an annotation in pixels; None if it is missing or unusable."""
    found = numbers([annotation.get("area")], 1)
    return found[0] if found and 0 <= found[0] < _MAX_AREA else None


def crowd_flag(annotation: Mapping[str, Any]) -> bool | None:
    """Returns the flag iscrowd of an annotation: False if it is missing, None if it is unusable."""
    flag = annotation.get("iscrowd", 0)
    return bool(flag) if isinstance(flag, (int, float)) and flag in (0, 1) else None


def _slim(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in pairs if key in _FIELDS}


def _category(path: Path, position: int, entry: Any, repaired: list[str]) -> tuple[int, str]:
    """Reads an entry of the category table: its id and its name, which is "" if unusable."""
    number = integer(entry.get("id")) if isinstance(entry, dict) else None
    if number is None:
        raise UserError(
            f"{path}: categories[{position}] must have an integer 'id' and a 'name', but it is "
            f"{printable(brief(entry))}"
        )
    value = entry.get("name", "")
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        name = json.dumps(value)
        repaired.append(
            f"categories[{position}] (id {number}): its name is {name}, read as {name!r}"
        )
        return number, name
    return number, _one_per_line(value) if isinstance(value, str) else ""


def _one_per_line(name: str) -> str:
    """Returns a name without line breaks, as names are stored one per line; "" if unusable."""
    name = " ".join(name.split())
    try:
        name.encode()
    except UnicodeEncodeError:
        return ""
    return name
