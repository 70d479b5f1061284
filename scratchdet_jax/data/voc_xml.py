"""Reads PASCAL VOC annotation files without trusting them."""

import math
from typing import NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

_MAX_DEPTH = 64  # VOC's own files need 4


class VocObject(NamedTuple):
    """One annotated object.

    Attributes:
        name: its class.
        box_pixels: (ymin, xmin, ymax, xmax) as written, or None if it cannot be read.
        is_difficult: the flag; False if absent.
        is_truncated: the flag; False if absent.
        problem: why `box_pixels` is None, or which flag cannot be read; "" if there is none.
    """

    name: str
    box_pixels: tuple[float, float, float, float] | None
    is_difficult: bool
    is_truncated: bool
    problem: str


class VocAnnotation(NamedTuple):
    """One annotation file: the image's (height, width) as stated, and the objects."""

    size: tuple[int, int] | None
    objects: tuple[VocObject, ...]


def parse_annotation(data: bytes) -> VocAnnotation:
    """Reads one annotation.

    Raises:
        ValueError: the data is not well-formed XML, not a VOC annotation or too deeply nested, or
            it declares a document type or entities (VOC files never do, and a small file could
            expand without bound).
    """
    root = _parse(data)
    if root.tag != "annotation":
        raise ValueError(f"its root is <{root.tag}>, not <annotation>")
    return VocAnnotation(_size(root), tuple(_object(o) for o in root.findall("object")))


def _parse(data: bytes) -> ElementTree.Element:
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    depth = 0

    def refuse(*_: object) -> None:
        raise ValueError("it declares a document type or entities")

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"its elements are nested more than {_MAX_DEPTH} deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError, TypeError) as error:  # the last two: odd encodings
        raise ValueError(f"not well-formed XML: {error}") from None
    return builder.close()


def _text(element: ElementTree.Element, path: str) -> str | None:
    text = element.findtext(path)
    return text.strip() if text else None


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    try:
        return int(_text(root, "size/height") or ""), int(_text(root, "size/width") or "")
    except ValueError:
        return None


def _object(element: ElementTree.Element) -> VocObject:
    name = " ".join((_text(element, "name") or "").split())  # names are stored one per line
    difficult, difficult_problem = _flag(element, "difficult")
    truncated, truncated_problem = _flag(element, "truncated")
    problem = difficult_problem or truncated_problem
    box = None
    try:
        box = tuple(_coordinate(element, key) for key in ("ymin", "xmin", "ymax", "xmax"))
    except ValueError as error:
        problem = str(error)
    if not name:
        box, problem = None, "it has no name"
    return VocObject(name, box, difficult, truncated, problem)


def _coordinate(element: ElementTree.Element, key: str) -> float:
    text = _text(element, f"bndbox/{key}")
    if text is None:
        raise ValueError(f"it has no {key}")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"its {key} is {text!r}, not a number")
    return value


def _flag(element: ElementTree.Element, key: str) -> tuple[bool, str]:
    text = _text(element, key)
    if text in (None, "0", "1"):
        return text == "1", ""
    return False, f"its flag {key} is {text!r}; 0 is assumed"
