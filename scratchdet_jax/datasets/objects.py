"""What goes into a data set: usable images, objects whose boxes fit them, and what was wrong."""

import enum
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scratchdet_jax.data.images import ImageHeader, check_complete, read_header, turn_boxes
from scratchdet_jax.datasets.untrusted import (
    MAX_IMAGE_BYTES,
    OutsideFolderError,
    Stamp,
    printable,
    read_stamped,
)
from scratchdet_jax.errors import UserError
from scratchdet_jax.progress import map_ahead, track

Box = tuple[float, float, float, float]

AHEAD = 64  # images that are read ahead of their use
# How far a box may extend beyond the image unreported: coordinates are often rounded to 0.01.
_ROUNDING = 0.02  # pixels


class Kind(enum.StrEnum):
    """Kinds of defect, each with its consequence.

    The texts are stored in report.json and in journals, so they must not change.
    """

    SWAPPED = "box with swapped corners (repaired)"
    CLIPPED = "box reaching out of the image (clipped)"
    NO_AREA = "box without area (left out)"
    OUTSIDE = "box outside the image (left out)"
    UNREADABLE_BOX = "object that cannot be read (left out)"
    UNKNOWN_CLASS = "object of an unknown class (left out)"
    UNKNOWN_IMAGE = "annotation of an image that is not listed (left out)"
    FLAG = "flag that cannot be read (taken as 0)"
    AREA = "area that cannot be read (the box's is taken)"
    ANNOTATION_ID = "annotation id that is missing, repeated or no integer (replaced)"
    SIZE = "annotation with another size than the image (the image's is used)"
    TURNED = "image annotated as stored, not as EXIF shows it (boxes turned)"
    RENAMED = "image under a slightly different name (used)"
    SHARED = "image file listed under several ids (used for each)"
    TWO_FILES = "two files of one id (the first is used)"
    LISTED_TWICE = "image listed twice in a split (used once)"
    NO_IMAGE = "missing image (left out)"
    BROKEN_IMAGE = "image that cannot be decoded whole (left out)"
    OUT_OF_FOLDER = "path that leads out of the named folder (refused, image left out)"
    NO_ANNOTATION = "image without annotation (left out)"
    BROKEN_ANNOTATION = "annotation that cannot be read (image left out)"
    MISPLACED = "annotation whose objects are not where VOC has them (image left out)"
    TAGS = "annotation with other tags than VOC's (read)"
    BROKEN_ENTRY = "image entry that cannot be read (left out)"
    CONFLICT = "image id given to several files (all left out)"
    CATEGORY_NAME = "class name that is not text (read as text)"
    NO_CLASS_NAME = "class without a name (named by its number)"
    EMPTY_SPLIT = "split without usable images (left out)"


class Defect(NamedTuple):
    """One defect of the input: its kind, the file (a relative path) and the details."""

    kind: Kind
    file: str
    reason: str


class Defects(list[Defect]):
    """What was left out or repaired so far."""

    def note(self, kind: Kind, file: str, reason: str) -> None:
        """Adds a defect; its texts fit on one line, whatever names and values they contain."""
        self.append(Defect(kind, printable(file), printable(reason)))


def unreadable(error: ValueError, kind: Kind) -> Kind:
    """Returns the kind of a file that cannot be read: `kind`, unless it is outside the folder."""
    return Kind.OUT_OF_FOLDER if isinstance(error, OutsideFolderError) else kind


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
    defects: Defects
    division: dict[str, Any] = {}  # noqa: RUF012, never changed
    test_set: bool = False


def join_splits(
    splits: Mapping[str, tuple[str, int, Sequence[UsableImage]]],
    class_names: Sequence[str],
    category_ids: Sequence[int] | None,
    notes: list[str],
    defects: Defects,
) -> Contents:
    """Joins the splits to the contents of a data set; one without usable images is a defect.

    `splits` holds, by name, the list or folder that a split comes from, for messages; the number of
    different images that it names; and the usable ones. The other arguments: see `Contents`.
    """
    for where, listed, images in splits.values():
        if not images:
            defects.note(Kind.EMPTY_SPLIT, where, f"none of its images is usable; listed: {listed}")
    return Contents(
        splits={name: images for name, (_, _, images) in splits.items() if images},
        class_names=tuple(class_names),
        category_ids=None if category_ids is None else tuple(category_ids),
        left_out={name: listed - len(images) for name, (_, listed, images) in splits.items()},
        notes=notes,
        defects=defects,
    )


def annotated_frame(
    stated: tuple[int, int] | None, header: ImageHeader, defects: Defects, file: str, where: str
) -> tuple[tuple[int, int], int]:
    """Decides whether boxes refer to the image as displayed or as stored.

    They refer to the displayed image, unless the annotation states the size of the stored image and
    the two sizes differ. A `stated` size that is not the displayed one is noted for `file`, with
    `where` before the details.

    Returns:
        The (height, width) that the boxes refer to, and the turn from there to the displayed frame.
    """
    height, width = header.displayed_size
    if stated in (None, (height, width)):
        return (height, width), 1
    says = f"{where}it says {stated[1]}×{stated[0]} pixels, the image has"
    if stated == header.size:
        defects.note(Kind.TURNED, file, f"{says} them as stored, and {width}×{height} as shown")
        return header.size, header.orientation
    defects.note(Kind.SIZE, file, f"{says} {width}×{height}")
    return (height, width), 1


def turned(box: Box, orientation: int) -> Box:
    """Turns a normalised box of the stored image into the displayed image."""
    if orientation == 1:
        return box
    ymin, xmin, ymax, xmax = turn_boxes(np.array([box]), orientation)[0].tolist()
    return ymin, xmin, ymax, xmax


def area_pixels(box: Box, size: tuple[int, int]) -> float:
    """Returns the area in pixels of a normalised box in an image of (height, width)."""
    ymin, xmin, ymax, xmax = box
    # Rounded, because normalising can make a box of exactly 32² pixels slightly smaller.
    return round((ymax - ymin) * (xmax - xmin) * size[0] * size[1], 3)


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


class Intact(NamedTuple):
    """An image file in the folder `root` that can be decoded whole."""

    root: Path
    stamp: Stamp
    header: ImageHeader


class Broken(NamedTuple):
    """An image file that cannot be used, and why."""

    kind: Kind
    reason: str


Checked = Intact | Broken


def check_images(paths: Sequence[Path], root: Path) -> dict[Path, Checked]:
    """Decodes every image completely; shows a progress bar.

    `root` is the resolved folder that must contain them.

    Returns:
        The results by path.
    """
    results = map_ahead(lambda path: _check(path, root), paths, AHEAD)
    found = track(results, len(paths), "checking images", "image")
    return dict(zip(paths, found, strict=True))


def _check(path: Path, root: Path) -> Checked:
    try:
        encoded, stamp = read_stamped(path, root, MAX_IMAGE_BYTES)
        header = read_header(encoded)
        check_complete(encoded)
    except ValueError as error:
        return Broken(unreadable(error, Kind.BROKEN_IMAGE), str(error))
    return Intact(root, stamp, header)
