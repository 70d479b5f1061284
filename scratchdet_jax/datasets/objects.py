"""What goes into a data set: usable images, and objects whose boxes fit their image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scratchdet_jax.data.images import ImageHeader, turn_boxes
from scratchdet_jax.datasets.defects import Defect, Kind
from scratchdet_jax.datasets.untrusted import Stamp

Box = tuple[float, float, float, float]

# How far a box may extend beyond the image unreported: coordinates are often rounded to 0.01.
_ROUNDING = 0.02  # pixels


class VocItem(NamedTuple):
    """An object of a VOC annotation; `box` as in `fit_box`."""

    name: str
    box: Box
    is_difficult: bool
    is_truncated: bool

    @property
    def is_ignored(self) -> bool:
        """Returns whether training and scoring ignore it."""
        return self.is_difficult


class CocoItem(NamedTuple):
    """An object of a COCO annotation; `box` as in `fit_box`, `area` in pixels."""

    name: str
    box: Box
    area: int
    id: int
    is_crowd: bool

    @property
    def is_ignored(self) -> bool:
        """Returns whether training and scoring ignore it."""
        return self.is_crowd


class YoloItem(NamedTuple):
    """An object of a YOLO label file; `box` as in `fit_box`."""

    name: str
    box: Box

    @property
    def is_ignored(self) -> bool:
        """Returns False: YOLO has no such flag."""
        return False


class UsableImage(NamedTuple):
    """A checked image and its usable objects.

    Attributes:
        path: its file.
        stamp: version of the file that was checked.
        filename: name stored in the data set.
        image_id: text (VOC, YOLO) or number (COCO).
        orientation: the EXIF orientation, 1…8.
        size: (height, width) as displayed, which the boxes refer to.
        objects: VocItem, CocoItem or YoloItem.
    """

    path: Path
    stamp: Stamp
    filename: str
    image_id: str | int
    orientation: int
    size: tuple[int, int]
    objects: Sequence[VocItem | CocoItem | YoloItem]


class Contents(NamedTuple):
    """What a scan of the input found.

    Attributes:
        splits: the usable images by split, in the order of their list.
        roots: the resolved folder of the images, by split.
        class_names: in the order of the labels.
        category_ids: the source's number of each class (COCO, YOLO); None for VOC.
        left_out: number of listed images that cannot be used, by split.
        notes: decisions made for the user.
        defects: everything that was left out or repaired.
        division: how a split was divided, as report.json records it; empty if none was.
        test_set: whether the input has no annotations at all.
    """

    splits: Mapping[str, Sequence[UsableImage]]
    roots: Mapping[str, Path]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...] | None
    left_out: dict[str, int]
    notes: list[str]
    defects: list[Defect]
    division: dict[str, Any] = {}  # noqa: RUF012, never changed
    test_set: bool = False


class Frame(NamedTuple):
    """The frame that the boxes of an annotation refer to.

    Attributes:
        size: its (height, width).
        orientation: the turn from it to the displayed frame; 1 if it is the displayed frame.
        problem: kind and details of a stated size that differs from the image's, or None.
    """

    size: tuple[int, int]
    orientation: int
    problem: tuple[Kind, str] | None


def annotated_frame(stated: tuple[int, int] | None, header: ImageHeader) -> Frame:
    """Decides whether boxes refer to the image as displayed or as stored.

    They refer to the displayed image, unless the annotation states the size of the stored image and
    the two sizes differ.
    """
    height, width = header.displayed_size
    if stated in (None, (height, width)):
        return Frame((height, width), 1, None)
    says = f"it says {stated[1]}×{stated[0]} pixels, the image has"
    if stated == header.size:
        problem = f"{says} them as stored, and {width}×{height} as shown"
        return Frame(header.size, header.orientation, (Kind.TURNED, problem))
    return Frame((height, width), 1, (Kind.SIZE, f"{says} {width}×{height}"))


def turned(box: Box, orientation: int) -> Box:
    """Turns a normalised box of the stored image into the displayed image."""
    if orientation == 1:
        return box
    ymin, xmin, ymax, xmax = turn_boxes(np.array([box]), orientation)[0].tolist()
    return ymin, xmin, ymax, xmax


def order_box(corners: Box) -> tuple[Box | None, list[Kind]]:
    """Orders the corners of a box (ymin, xmin, ymax, xmax) in pixels; notes the defects.

    None if it has no area.
    """
    (ymin, ymax), (xmin, xmax) = sorted(corners[::2]), sorted(corners[1::2])
    if ymin == ymax or xmin == xmax:
        return None, [Kind.NO_AREA]
    ordered = ymin, xmin, ymax, xmax
    return ordered, [Kind.SWAPPED] if ordered != tuple(corners) else []


def fit_box(corners: Box, size: tuple[int, int]) -> tuple[Box | None, list[Kind]]:
    """Orders, clips and normalises a box.

    Args:
        corners: (ymin, xmin, ymax, xmax) in pixels.
        size: (height, width) of the image.

    Returns:
        (ymin, xmin, ymax, xmax) in [0, 1], of positive area also in float32, in which it is stored,
        or None; and the defects found.
    """
    ordered, kinds = order_box(corners)
    if ordered is None:
        return None, kinds
    ymin, xmin, ymax, xmax = ordered
    height, width = size
    if ymin >= height or xmin >= width or ymax <= 0 or xmax <= 0:
        return None, [Kind.OUTSIDE]
    inside = max(ymin, 0.0), max(xmin, 0.0), min(ymax, float(height)), min(xmax, float(width))
    box = inside[0] / height, inside[1] / width, inside[2] / height, inside[3] / width
    stored = [np.float32(x) for x in box]
    if stored[0] >= stored[2] or stored[1] >= stored[3]:
        return None, [Kind.NO_AREA]
    if any(abs(a - b) > _ROUNDING for a, b in zip(ordered, inside, strict=True)):
        kinds.append(Kind.CLIPPED)
    return box, kinds
