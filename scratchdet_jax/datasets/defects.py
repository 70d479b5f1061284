"""Kinds of defect: what can be wrong in a folder of images and annotations."""

import enum
from typing import NamedTuple

from scratchdet_jax.datasets.untrusted import printable


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

    @classmethod
    def of(cls, kind: Kind, file: str, reason: str) -> "Defect":
        """Returns a defect whose texts fit on one line, whatever names and values they contain."""
        return cls(kind, printable(file), printable(reason))
