"""What goes into a data set: objects whose boxes fit their image, and the images they are in."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scratchdet_jax.data.builders.defects import Kind
from scratchdet_jax.data.builders.files import Stamp
from scratchdet_jax.data.images import ImageHeader, turn_boxes

Box = tuple[float, float, float, float]

# How far a box may reach out without a word: coordinates are often rounded to hundredths.
_ROUNDING = 0.02  # pixels


class VocItem(NamedTuple):
    """An object of a VOC annotation; `box` as in fit_box."""

    name: str
    box: Box
    is_difficult: bool
    is_truncated: bool

    @property
    def is_ignored(self) -> bool:
        """Whether training and scoring ignore it."""
        return self.is_difficult


class CocoItem(NamedTuple):
    """An object of a COCO annotation; `box` as in fit_box, `area` in pixels."""

    name: str
    box: Box
    area: int
    id: int
    is_crowd: bool

    @property
    def is_ignored(self) -> bool:
        """Whether training and scoring ignore it."""
        return self.is_crowd


class PreparedImage(NamedTuple):
    """One usable image.

    Attributes:
        path: of its file.
        stamp: of the file when it was checked.
        filename: as stored in the data set.
        image_id: text (VOC) or number (COCO).
        orientation: the turn that EXIF asks for, 1…8.
        size: (height, width) as displayed, which is what the boxes refer to.
        objects: VocItem or CocoItem.
    """

    path: Path
    stamp: Stamp
    filename: str
    image_id: str | int
    orientation: int
    size: tuple[int, int]
    objects: Sequence[VocItem | CocoItem]


class Frame(NamedTuple):
    """The frame that the boxes of an annotation are written in.

    Attributes:
        size: its (height, width).
        orientation: what turns it into the displayed frame; 1 where it is that frame.
        problem: how the stated size differs from the image's, or "".
    """

    size: tuple[int, int]
    orientation: int
    problem: str


def annotated_frame(stated: tuple[int, int] | None, header: ImageHeader) -> Frame:
    """Decides whether boxes refer to the image as displayed or as stored.

    As displayed, unless the annotation states the size of the stored image, and that is another.
    """
    height, width = header.displayed_size
    if stated in (None, (height, width)):
        return Frame((height, width), 1, "")
    says = f"it says {stated[1]}×{stated[0]} pixels, the image has"
    if stated == header.size:
        problem = f"{says} them as stored, and {width}×{height} as shown"
        return Frame(header.size, header.orientation, problem)
    return Frame((height, width), 1, f"{says} {width}×{height}")


def turned(box: Box, orientation: int) -> Box:
    """A normalised box of the stored image in the displayed one."""
    if orientation == 1:
        return box
    return tuple(map(float, turn_boxes(np.array([box]), orientation)[0]))


def fit_box(corners: Box, size: tuple[int, int]) -> tuple[Box | None, list[Kind]]:
    """Orders, clips and normalises a box.

    Args:
        corners: (ymin, xmin, ymax, xmax) in pixels.
        size: (height, width) of the image.

    Returns:
        (ymin, xmin, ymax, xmax) in [0, 1], of positive area in float32 too, in which it is stored;
        or None; and what had to be done.
    """
    (ymin, ymax), (xmin, xmax) = sorted(corners[::2]), sorted(corners[1::2])
    height, width = size
    if ymin == ymax or xmin == xmax:
        return None, [Kind.NO_AREA]
    if ymin >= height or xmin >= width or ymax <= 0 or xmax <= 0:
        return None, [Kind.OUTSIDE]
    inside = max(ymin, 0.0), max(xmin, 0.0), min(ymax, float(height)), min(xmax, float(width))
    box = inside[0] / height, inside[1] / width, inside[2] / height, inside[3] / width
    stored = [np.float32(x) for x in box]
    if stored[0] >= stored[2] or stored[1] >= stored[3]:
        return None, [Kind.NO_AREA]
    ordered = ymin, xmin, ymax, xmax
    kinds = [Kind.SWAPPED] if ordered != tuple(corners) else []
    if any(abs(a - b) > _ROUNDING for a, b in zip(ordered, inside, strict=True)):
        kinds.append(Kind.CLIPPED)
    return box, kinds
