"""What goes into a data set: usable images, and objects whose boxes fit their image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scratchdet_jax.data.images import ImageHeader, turn_boxes
from scratchdet_jax.datasets.defects import Defect, Kind
from scratchdet_jax.datasets.untrusted import Stamp, read_stamped
from scratchdet_jax.errors import UserError

Box = tuple[float, float, float, float]

# How far a box may extend beyond the image unreported: coordinates are often rounded to 0.01.
_ROUNDING = 0.02  # pixels


class Item(NamedTuple):
    """An annotated object.

    Attributes:
        name: its class.
        box: as `fit_box` returns it.
        is_ignored: whether training and scoring ignore it (difficult or crowd).
        features: the other features that are stored, as the builder names them.
    """

    name: str
    box: Box
    is_ignored: bool
    features: Mapping[str, Any]


class UsableImage(NamedTuple):
    """A checked image and its usable objects.

    Attributes:
        path: its file.
        filename: name stored in the data set.
        image_id: text (VOC, YOLO) or number (COCO).
        root: the resolved folder that the file is in.
        stamp: version of the file that was checked.
        header: its size, which the boxes refer to as displayed, and its EXIF orientation.
        objects: its usable objects.
    """

    path: Path
    filename: str
    image_id: str | int
    root: Path
    stamp: Stamp
    header: ImageHeader
    objects: Sequence[Item]


def read_unchanged(image: UsableImage) -> bytes:
    """Reads the image's bytes; a UserError says that the file has changed since it was checked."""
    try:
        data, stamp = read_stamped(image.path, image.root, image.stamp.size)
        if stamp == image.stamp:
            return data
        reason = "its size or modification time differs"
    except ValueError as error:
        reason = str(error)
    raise UserError(
        f"{image.path} changed after it was checked ({reason}): run the same command again"
    )


class Contents(NamedTuple):
    """What a scan of the input found.

    Attributes:
        splits: the usable images by split, in the order of their list.
        class_names: in the order of the labels.
        category_ids: the source's number of each class (COCO, YOLO); None for VOC.
        left_out: number of listed images that cannot be used, by split.
        notes: decisions made for the user.
        defects: everything that was left out or repaired.
        division: how a split was divided, as report.json records it; empty if none was.
        test_set: whether the input has no annotations at all.
    """

    splits: Mapping[str, Sequence[UsableImage]]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...] | None
    left_out: dict[str, int]
    notes: list[str]
    defects: list[Defect]
    division: dict[str, Any] = {}  # noqa: RUF012, never changed
    test_set: bool = False


def join_splits(
    splits: Mapping[str, tuple[str, int, Sequence[UsableImage]]],
    class_names: Sequence[str],
    category_ids: Sequence[int] | None,
    notes: list[str],
    defects: list[Defect],
) -> Contents:
    """Joins the splits to the contents of a data set; one without usable images is a defect.

    Args:
        splits: by name, the list or folder that it comes from, for messages; the number of
            different images that it names; and the usable ones.
        class_names: see `Contents`.
        category_ids: see `Contents`.
        notes: see `Contents`.
        defects: everything that was left out or repaired so far.
    """
    for where, listed, images in splits.values():
        if not images:
            reason = f"none of its images is usable; listed: {listed}"
            defects.append(Defect.of(Kind.EMPTY_SPLIT, where, reason))
    return Contents(
        splits={name: images for name, (_, _, images) in splits.items() if images},
        class_names=tuple(class_names),
        category_ids=None if category_ids is None else tuple(category_ids),
        left_out={name: listed - len(images) for name, (_, listed, images) in splits.items()},
        notes=notes,
        defects=defects,
    )


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


def fit_box(corners: Box, size: tuple[int, int] | None) -> tuple[Box | None, list[Kind]]:
    """Orders the corners of a box; clips and normalises it.

    Args:
        corners: (ymin, xmin, ymax, xmax) in pixels.
        size: (height, width) of the image; None: only order the corners.

    Returns:
        (ymin, xmin, ymax, xmax), of positive area also in float32, in which it is stored, or None;
        and the defects found. It is in [0, 1] if `size` is given, else in pixels.
    """
    (ymin, ymax), (xmin, xmax) = sorted(corners[::2]), sorted(corners[1::2])
    if ymin == ymax or xmin == xmax:
        return None, [Kind.NO_AREA]
    ordered = ymin, xmin, ymax, xmax
    kinds = [Kind.SWAPPED] if ordered != tuple(corners) else []
    if size is None:
        return ordered, kinds
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
