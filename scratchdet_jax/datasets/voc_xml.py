"""Reads PASCAL VOC annotation files without trusting them."""

import math
from typing import NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

_MAX_DEPTH = 64  # VOC's own files need 4
_CORNERS = ("ymin", "xmin", "ymax", "xmax")

# Tags and attributes (in lower case) that show a box or an object wherever they are.
_COORDINATES = {*_CORNERS, "x1", "y1", "x2", "y2", "xtl", "ytl", "xbr", "ybr", "points"}
_BOXES = {"bndbox", "bndboxes", "bbox", "bboxes", "box", "boxes", "hbb", "rect", "rectangle"}
_OTHER_SHAPES = {"robndbox", "rotated_box", "rbox", "obb", "polygon", "polygons"}
_GEOMETRY = _COORDINATES | _BOXES | _OTHER_SHAPES | {"obj", "object"}
# Children of <annotation> that have children or attributes of their own and describe no object.
_METADATA = frozenset(("folder", "filename", "path", "source", "owner", "size", "imagesize"))


class VocObject(NamedTuple):
    """One annotated object.

    Attributes:
        name: its class.
        box_pixels: (ymin, xmin, ymax, xmax) as written, or None if it cannot be read.
        is_difficult: the flag; False if absent.
        is_truncated: the flag; False if absent.
        problem: why `box_pixels` is None, or that the flag difficult cannot be read; "" if there is
            none.
        truncated_problem: that the flag truncated, which no metric uses, cannot be read; or "".
    """

    name: str
    box_pixels: tuple[float, float, float, float] | None
    is_difficult: bool
    is_truncated: bool
    problem: str
    truncated_problem: str = ""


class VocAnnotation(NamedTuple):
    """One annotation file.

    Attributes:
        size: the image's (height, width) as stated, or None.
        objects: all objects, repaired ones included.
        repairs: what was read although it is written in another way than VOC's.
        misplaced: what looks like an object but is not where VOC has it. While there is any, it is
            unknown which objects the image shows.
    """

    size: tuple[int, int] | None
    objects: tuple[VocObject, ...]
    repairs: tuple[str, ...] = ()
    misplaced: tuple[str, ...] = ()


def parse_annotation(data: bytes) -> VocAnnotation:
    """Reads one annotation.

    VOC's tags are recognised in upper and lower case, and objects also inside one <objects>; both
    are listed in `repairs`.

    Raises:
        ValueError: the data is not well-formed XML, not a VOC annotation or too deeply nested, or
            it declares a document type or entities (VOC files never do, and a small file could
            expand without bound).
    """
    return _Reader().read(_parse(data))


class _Reader:
    """Reads one tree; collects repairs and what is misplaced."""

    def __init__(self) -> None:
        self._renamed: dict[str, str] = {}  # tag as written → VOC's
        self._repairs: list[str] = []
        self._misplaced: list[str] = []

    def read(self, root: ElementTree.Element) -> VocAnnotation:
        if root.tag.lower() != "annotation":
            raise ValueError(f"its root is <{root.tag}>, not <annotation>")
        self._known_as(root, "annotation")
        size = self._size(root)
        elements = self._objects(root)
        objects = tuple(self._object(element) for element in elements)
        for number, (element, item) in enumerate(zip(elements, objects, strict=True), start=1):
            if problem := _box_problem(element):
                where = f"object {number} ({item.name or 'no name'})"
                self._misplaced.append(f"{where} {problem}")
        renamed = [f"<{tag}> for <{known}>" for tag, known in self._renamed.items()]
        return VocAnnotation(
            size, objects, tuple(renamed + self._repairs), tuple(dict.fromkeys(self._misplaced))
        )

    def _objects(self, root: ElementTree.Element) -> list[ElementTree.Element]:
        """Finds the elements of the objects in order; notes what else may be one."""
        found: list[ElementTree.Element] = []
        unknown = []
        for child in root:
            tag = child.tag.lower()
            if tag == "object":
                found.append(self._known_as(child, "object"))
            elif tag == "objects":
                found += self._inside_objects(child)
            elif any(_shows_object(element) for element in child.iter()):
                self._misplaced.append(f"<{child.tag}> shows an object and is no <object>")
            elif tag not in _METADATA and (len(child) or child.attrib):
                unknown.append(f"there is no <object>, but there is <{child.tag}>")
        if not found:
            self._misplaced += unknown
        return found

    def _inside_objects(self, wrapper: ElementTree.Element) -> list[ElementTree.Element]:
        found = [child for child in wrapper if child.tag.lower() == "object"]
        if found:
            self._repairs.append(f"<object> inside <{wrapper.tag}>")
        rest = [child for child in wrapper if child.tag.lower() != "object"]
        others = [child.tag for child in rest if len(child) or child.attrib or _shows_object(child)]
        if others:
            self._misplaced.append(f"<{wrapper.tag}> has <{others[0]}>, which is no <object>")
        elif not found and _has_content(wrapper):
            self._misplaced.append(f"<{wrapper.tag}> has content, but no <object>")
        return [self._known_as(child, "object") for child in found]

    def _known_as(self, element: ElementTree.Element, tag: str) -> ElementTree.Element:
        if element.tag != tag:
            self._renamed.setdefault(element.tag, tag)
        return element

    def _child(self, element: ElementTree.Element, tag: str) -> ElementTree.Element | None:
        """Finds the first child with a tag, in any upper and lower case."""
        child = element.find(tag)
        if child is None:
            child = next((other for other in element if other.tag.lower() == tag), None)
        return child if child is None else self._known_as(child, tag)

    def _text(self, element: ElementTree.Element, *path: str) -> str | None:
        child: ElementTree.Element | None = element
        for tag in path:
            if child is not None:
                child = self._child(child, tag)
        return child.text.strip() if child is not None and child.text else None

    def _size(self, root: ElementTree.Element) -> tuple[int, int] | None:
        height, width = (self._text(root, "size", key) for key in ("height", "width"))
        try:
            return int(height or ""), int(width or "")
        except ValueError:
            return None

    def _object(self, element: ElementTree.Element) -> VocObject:
        text = self._text(element, "name") or ""
        name = " ".join(text.split())  # names are stored one per line
        difficult, problem = self._flag(element, "difficult")
        truncated, truncated_problem = self._flag(element, "truncated")
        box = None
        try:
            ymin, xmin, ymax, xmax = (self._coordinate(element, key) for key in _CORNERS)
            box = ymin, xmin, ymax, xmax
        except ValueError as error:
            problem = str(error)
        if not name:
            box, problem = None, "it has no name"
        return VocObject(name, box, difficult, truncated, problem, truncated_problem)

    def _coordinate(self, element: ElementTree.Element, key: str) -> float:
        text = self._text(element, "bndbox", key)
        if text is None:
            raise ValueError(f"it has no {key}")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"its {key} is {text!r}, not a number")
        return value

    def _flag(self, element: ElementTree.Element, key: str) -> tuple[bool, str]:
        text = self._text(element, key)
        if text in (None, "0", "1"):
            return text == "1", ""
        return False, f"its flag {key} is {text!r}; 0 is assumed"


def _box_problem(element: ElementTree.Element) -> str:
    """Says why an object's <bndbox> may not be its only box, or is none; "" if it is fine."""
    boxes = [child for child in element if child.tag.lower() == "bndbox"]
    # A <part> of an object (head, hand, foot) has a box of its own.
    rest = [child for child in element if child.tag.lower() not in ("bndbox", "part")]
    inside = [other for child in rest for other in child.iter() if _shows_object(other)]
    if len(boxes) > 1:
        return f"has {len(boxes)} <bndbox>"
    if not boxes and inside:
        return f"has <{inside[0].tag}> and no <bndbox>"
    if not boxes and _has_box_attribute(element):
        return "has attributes for its box and no <bndbox>"
    nested = [other.tag for other in inside if other.tag.lower() in ("object", "bndbox")]
    if nested:
        return f"has another <{nested[0]}> inside"
    if boxes and _has_content(boxes[0]):
        tags = {child.tag.lower() for child in boxes[0]}
        if not tags & set(_CORNERS):
            written = [*(child.tag for child in boxes[0]), *boxes[0].attrib] or ["only text"]
            return f"has a <bndbox> with {', '.join(written)}, not xmin, ymin, xmax, ymax"
    return ""


def _shows_object(element: ElementTree.Element) -> bool:
    """Returns whether the element itself is a box or an object by its tag or its attributes."""
    return _has_box_attribute(element) or (
        element.tag.lower() in _GEOMETRY and _has_content(element)
    )


def _has_box_attribute(element: ElementTree.Element) -> bool:
    return bool(_GEOMETRY & {key.lower() for key in element.attrib})


def _has_content(element: ElementTree.Element) -> bool:
    return bool(len(element) or element.attrib or (element.text or "").strip())


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
