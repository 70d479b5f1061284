"""Reads PASCAL VOC annotation files without trusting them."""

import math
from typing import NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

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
_MAX_DEPTH = 64  # VOC's own files need 4
_CORNERS = ("ymin", "xmin", "ymax", "xmax")
# The tags that are read.
_KNOWN = {"annotation", "size", "height", "width", "object", "name", "difficult", "truncated"}
_KNOWN |= {"bndbox", *_CORNERS}

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
        problem: why `box_pixels` is None, or that a flag cannot be read; "" if there is none.
    """

    name: str
    box_pixels: tuple[float, float, float, float] | None
    is_difficult: bool
    is_truncated: bool
    problem: str


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
    root, repairs = _parse(data)
    if root.tag != "annotation":
        raise ValueError(f"its root is <{root.tag}>, not <annotation>")
    misplaced: list[str] = []
    objects = []
    for number, element in enumerate(_objects(root, repairs, misplaced), start=1):
        item = _object(element)
        objects.append(item)
        if problem := _box_problem(element):
            misplaced.append(f"object {number} ({item.name or 'no name'}) {problem}")
    return VocAnnotation(
        _size(root), tuple(objects), tuple(repairs), tuple(dict.fromkeys(misplaced))
    )


def _objects(
    root: ElementTree.Element, repairs: list[str], misplaced: list[str]
) -> list[ElementTree.Element]:
    """Finds the elements of the objects in order; notes what else may be one."""
    found: list[ElementTree.Element] = []
    unknown = []
    children: list[ElementTree.Element] = []
    for child in root:
        is_wrapper = child.tag == "objects" and len(child) > 0
        children += child if is_wrapper else [child]
        if is_wrapper and child.find("object") is not None:
            repairs.append("<object> inside <objects>")
    for child in children:
        if child.tag == "object":
            found.append(child)
        elif any(_shows_object(element) for element in child.iter()):
            misplaced.append(f"<{child.tag}> shows an object and is no <object>")
        elif child.tag not in _METADATA and (
            len(child) or child.attrib or (child.tag == "objects" and _has_content(child))
        ):
            unknown.append(f"there is no <object>, but there is <{child.tag}>")
    if not found:
        misplaced += unknown
    return found


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    try:
        return int(_text(root, "size/height")), int(_text(root, "size/width"))
    except ValueError:
        return None


def _object(element: ElementTree.Element) -> VocObject:
    name = " ".join(_text(element, "name").split())  # names are stored one per line
    flags = [_text(element, key) for key in ("difficult", "truncated")]
    problem, box = "", None
    for key, text in zip(("difficult", "truncated"), flags, strict=True):
        if text not in ("", "0", "1"):
            problem = problem or f"its flag {key} is {text!r}; 0 is assumed"
    try:
        ymin, xmin, ymax, xmax = (_coordinate(element, key) for key in _CORNERS)
        box = ymin, xmin, ymax, xmax
    except ValueError as error:
        problem = str(error)
    if not name:
        box, problem = None, "it has no name"
    return VocObject(name, box, flags[0] == "1", flags[1] == "1", problem)


def _coordinate(element: ElementTree.Element, key: str) -> float:
    text = _text(element, f"bndbox/{key}")
    if not text:
        raise ValueError(f"it has no {key}")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"its {key} is {text!r}, not a number")
    return value


def _box_problem(element: ElementTree.Element) -> str:
    """Says why an object's <bndbox> may not be its only box, or is none; "" if it is fine."""
    boxes = element.findall("bndbox")
    # A <part> of an object (head, hand, foot) has a box of its own.
    rest = [child for child in element if child.tag not in ("bndbox", "part")]
    inside = [other.tag for child in rest for other in child.iter() if _shows_object(other)]
    nested = [tag for tag in inside if tag in ("object", "bndbox")]
    if len(boxes) > 1:
        return f"has {len(boxes)} <bndbox>"
    if not boxes and inside:
        return f"has <{inside[0]}> and no <bndbox>"
    if not boxes and _has_box_attribute(element):
        return "has attributes for its box and no <bndbox>"
    if nested:
        return f"has another <{nested[0]}> inside"
    if boxes and _has_content(boxes[0]) and not {child.tag for child in boxes[0]} & {*_CORNERS}:
        written = [*(child.tag for child in boxes[0]), *boxes[0].attrib] or ["only text"]
        return f"has a <bndbox> with {', '.join(written)}, not xmin, ymin, xmax, ymax"
    return ""


def _shows_object(element: ElementTree.Element) -> bool:
    """Returns whether the element itself is a box or an object by its tag or its attributes."""
    return _has_box_attribute(element) or (element.tag in _GEOMETRY and _has_content(element))


def _has_box_attribute(element: ElementTree.Element) -> bool:
    return not _GEOMETRY.isdisjoint(element.attrib)


def _has_content(element: ElementTree.Element) -> bool:
    return bool(len(element) or element.attrib or (element.text or "").strip())


def _parse(data: bytes) -> tuple[ElementTree.Element, list[str]]:
    """Returns the tree in lower case, and which of the tags that are read had another case."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    depth = 0
    renamed: dict[str, str] = {}

    def refuse(*_: object) -> None:
        raise ValueError("it declares a document type or entities")

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"its elements are nested more than {_MAX_DEPTH} deep")
        if tag.lower() != tag and tag.lower() in _KNOWN:
            renamed[tag] = tag.lower()
        builder.start(tag.lower(), {key.lower(): value for key, value in attributes.items()})

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag.lower())

    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError, TypeError) as error:  # the last two: odd encodings
        raise ValueError(f"not well-formed XML: {error}") from None
    return builder.close(), [f"<{tag}> for <{known}>" for tag, known in renamed.items()]
