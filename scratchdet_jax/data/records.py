"""Prepared TFDS data sets → examples with random access, without TensorFlow."""

import bisect
import itertools
import re
import threading
import warnings
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypedDict

import numpy as np

from scratchdet_jax.data.first_use import provider
from scratchdet_jax.data.tfds_dataset import NoDataSetError, PreparedSplit, open_prepared
from scratchdet_jax.errors import UserError, plural
from scratchdet_jax.paths import buckets, in_bucket, user_path

CACHE = "~/.cache/scratchdet_jax"  # of data sets in a bucket


class Example(TypedDict):
    """One labelled image as stored.

    Attributes:
        image: the encoded file (JPEG, PNG, …), as it was prepared.
        orientation: 1…8, the EXIF turn that yields the image the boxes refer to; 1, no turn, if the
            data set has no such field.
        boxes: float32 [n, 4], (ymin, xmin, ymax, xmax) in [0, 1], each of positive area.
        labels: int32 [n], 1…C.
        ignore: bool [n], difficult (VOC) or crowd (COCO).
        filename: name of the image file.
        image_id: the data set's own id, or the file name without its suffix.
    """

    image: bytes
    orientation: int
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    filename: str
    image_id: str


class SpecPart(NamedTuple):
    """One part of a spec: NAME[/CONFIG], SPLIT, and DIR or ""."""

    name: str
    split: str
    directory: str


class DetectionSource:
    """The examples of one or several splits, in order, by position.

    Safe to read from several threads.

    Attributes:
        spec: the data sets and splits, `NAME[/CONFIG]:SPLIT[@DIR][,…]`.
        data_dir: folder of the prepared data sets, except of parts with their own DIR.
        class_names: label i is `class_names[i - 1]`.
        category_ids: the original COCO category id of each label; None if the data set has none or
            its parts have different ones.
    """

    def __init__(self, spec: str, data_dir: str | Path, cache: str = CACHE) -> None:
        """Opens data sets prepared with TFDS as ArrayRecord files.

        Args:
            spec: `NAME[/CONFIG]:SPLIT[@DIR]`, or several joined by commas. SPLIT is in TFDS's split
                language; DIR is the folder of that part if it is not `data_dir`. Examples:
                `shapes:train`, `voc/2007:train+validation,voc/2012:train+validation@/disk/tfds`,
                `voc_folder/cells:train[:80%]`. `shapes` is made at first use. A comma always ends a
                part, and the first @ starts its DIR, which may contain more @ and colons. A folder
                with a comma in its name can only be given as `data_dir` (or through a link).
            data_dir: TFDS's data_dir; of one in a bucket, the files are copied to `cache`.
            cache: `config.data.cache`.

        Raises:
            UserError: a data set is missing or stored as TFRecord (the message names the command
                that helps), damaged or unreadable, a split is unknown or empty, the features are
                not those of detection, or the classes of joined data sets differ.
        """
        self.spec, self.data_dir = spec, str(user_path(data_dir))
        self._parts = [open_part(part, self.data_dir, cache) for part in parse_spec(spec)]
        first = self._parts[0]
        self.class_names = first.class_names
        for part in self._parts[1:]:
            if part.class_names != self.class_names:
                raise UserError(
                    f"{first.name} and {part.name} cannot be joined: their classes differ "
                    f"({', '.join(self.class_names)}; {', '.join(part.class_names)})"
                )
        same_ids = all(part.category_ids == first.category_ids for part in self._parts)
        self.category_ids = first.category_ids if same_ids else None
        self._ends = list(itertools.accumulate(len(part.records) for part in self._parts))
        self._lock = threading.Lock()
        self._left_out: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        part, position = self._locate(index)
        fields = part.read(position)
        try:
            example = _example(part, position, fields)
        except (ValueError, IndexError, KeyError, OverflowError) as error:
            raise part.damaged(position, error) from error
        usable = self._usable(index, example, part)
        if usable is not None:
            for key in ("boxes", "labels", "ignore"):
                example[key] = example[key][usable]
        return example

    def image_id(self, index: int) -> str:
        """Returns the data set's own id of the image at a position."""
        part, position = self._locate(index)
        fields = part.read(position)
        return _image_id(part, fields, _filename(part, position, fields))

    def stored_objects(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the boxes [n, 4] and labels [n], 1…C, of a record as they are stored."""
        part, position = self._locate(index)
        fields = part.read(position)
        boxes = np.fromiter(_values(fields, "objects/bbox", "float_list"), np.float32)
        labels = np.fromiter(_values(fields, "objects/label", "int64_list"), np.int64)
        return boxes.reshape(-1, 4), labels + 1

    def describe(self, index: int) -> str:
        """Says where an image is, for messages: record 3 of voc/2007:train in DIR."""
        part, position = self._locate(index)
        directory = Path(part.shards[0].filename).parent
        return f"record {position} of {part.name} in {directory}"

    def require_boxes(self, field: str) -> None:
        """Refuses data without annotations, on which nothing can be trained or scored.

        Reads no further than the first box.

        `field` is the config field that names the data, for the message.

        Raises:
            UserError: a part is published without annotations, or no image has a box.
        """
        advice = (
            "eval.py can predict on it (--config.eval.metric=none), but it can be neither trained "
            "on nor scored: name another split"
        )
        for part in self._parts:
            if part.unlabelled:
                raise UserError(
                    f"{field} {self.spec}: the split {part.unlabelled} of {part.name} has no "
                    f"annotations; {advice}"
                )
        if not any(len(self[i]["labels"]) for i in range(len(self))):
            raise UserError(
                f"{field} {self.spec}: none of {plural(len(self), 'image')} has a box; {advice}"
            )

    def most_boxes(self, enough: int) -> tuple[int, str]:
        """Returns the largest number of boxes in an image, and the name of that image.

        A part whose report has no more than `enough` boxes in an image is not read. Of the others,
        every record is read, but no image is decoded.

        Returns:
            (0, "") if no part has to be read.
        """
        most, name = 0, ""
        for part, end in zip(self._parts, self._ends, strict=True):
            bound = part.most_boxes()
            if bound is not None and bound <= enough:
                continue
            for position in range(len(part.records)):
                fields = part.read(position)
                if len(fields["objects/label"].int64_list.value) <= max(most, enough):
                    continue
                example = self[end - len(part.records) + position]  # without unusable boxes
                if len(example["labels"]) > most:
                    most, name = len(example["labels"]), example["filename"]
        return most, name

    def left_out_line(self) -> str:
        """Returns a sentence about the boxes left out so far; "" if there is none.

        Each box is counted once, however often its image is read.
        """
        with self._lock:
            counts = list(self._left_out.values())
        if not counts:
            return ""
        no_area, no_label = (sum(part) for part in zip(*counts, strict=True))
        return (
            f"left out {plural(no_area + no_label, 'box')} of {plural(len(counts), 'image')} of "
            f"{self.spec}: {no_area:,} without area inside the image, {no_label:,} without label"
        )

    def _locate(self, index: int) -> tuple[PreparedSplit, int]:
        if not 0 <= index < len(self):
            raise IndexError(
                f"{self.spec} has {plural(len(self), 'image')}: there is no image {index}"
            )
        which = bisect.bisect_right(self._ends, index)
        return self._parts[which], index - (self._ends[which - 1] if which else 0)

    def _usable(self, index: int, example: Example, part: PreparedSplit) -> np.ndarray | None:
        """Finds the usable boxes, bool [n], or None for all; counts the others, warns once."""
        boxes, labels = example["boxes"], example["labels"]
        has_area = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        has_label = (labels > 0) & (labels <= len(self.class_names))
        usable = has_area & has_label
        if usable.all():
            return None
        counts = (int(np.sum(~has_area)), int(np.sum(has_area & ~has_label)))
        with self._lock:
            first = not self._left_out
            self._left_out[index] = counts
        if first:
            warnings.warn(
                f"{example['filename']} of {part.name}: {sum(counts)} of its boxes left out for "
                "lack of area inside the image or of a label; further ones are counted, and the "
                "total is reported at the end",
                stacklevel=3,
            )
        return usable


def parse_spec(spec: str) -> list[SpecPart]:
    """Parses the parts of a spec; see `DetectionSource`.

    Raises:
        UserError: a part does not have the form NAME[/CONFIG]:SPLIT[@DIR].
    """
    parts = []
    for text in spec.split(","):
        name, _, rest = (word.strip() for word in text.partition(":"))
        split, at, directory = (word.strip() for word in rest.partition("@"))
        named = re.fullmatch(r"\w+(/[\w.+-]+)?", name) and split
        if not named or bool(at) != bool(directory):
            raise UserError(
                f"{text.strip()!r} in the data set {spec!r} is not NAME[/CONFIG]:SPLIT or "
                "NAME[/CONFIG]:SPLIT@DIR, such as voc/2007:train+validation (commas join several; "
                "no name may contain one)"
            )
        parts.append(SpecPart(name, split, directory))
    return parts


def open_part(part: SpecPart, data_dir: str, cache: str = CACHE) -> PreparedSplit:
    """Opens one part of a spec; a missing set that can make itself is made.

    Raises:
        UserError: see `DetectionSource`.
    """
    data_dir = str(user_path(part.directory or data_dir))

    def opened_now() -> PreparedSplit:
        local = data_dir
        if in_bucket(data_dir):
            local = buckets("cached").cached(part.name, part.split, data_dir, cache)
        return open_prepared(part.name, part.split, local)

    try:
        opened = opened_now()
    except NoDataSetError as error:
        if not provider().provide(part.name, data_dir):
            raise error.with_advice(provider().how_to_provide(part.name, data_dir)) from None
        opened = opened_now()
    return opened._replace(name=f"{opened.name}@{part.directory}") if part.directory else opened


def _example(part: PreparedSplit, position: int, fields: Any) -> Example:
    """Returns a record as an example, with clipped boxes; nothing is left out yet.

    Raises:
        ValueError, IndexError, KeyError, OverflowError: it is incomplete or inconsistent.
    """
    labels = np.fromiter(_values(fields, "objects/label", "int64_list"), np.int32) + np.int32(1)
    boxes = np.fromiter(_values(fields, "objects/bbox", "float_list"), np.float32)
    boxes = boxes.reshape(len(labels), 4).clip(0.0, 1.0)
    ignore = np.zeros(len(labels), bool)
    for key in ("objects/is_difficult", "objects/is_crowd"):
        if key in part.keys:
            ignore |= np.fromiter(_values(fields, key, "int64_list"), bool)
    orientation = 1
    if "image/orientation" in part.keys:
        orientation = _values(fields, "image/orientation", "int64_list")[0]
        if not 1 <= orientation <= 8:
            raise ValueError(f"image/orientation is {orientation}, not in 1 to 8")
    filename = _filename(part, position, fields)
    return Example(
        image=_values(fields, "image", "bytes_list")[0],
        orientation=orientation,
        boxes=boxes,
        labels=labels,
        ignore=ignore,
        filename=filename,
        image_id=_image_id(part, fields, filename),
    )


def _values(fields: Any, key: str, kind: str) -> Any:
    """Returns the values of one field of a record (reading a missing key directly would add it)."""
    if key not in fields:
        raise KeyError(f"it has no {key}")
    return getattr(fields[key], kind).value


def _filename(part: PreparedSplit, position: int, fields: Any) -> str:
    if "image/filename" in part.keys:
        return _text(_values(fields, "image/filename", "bytes_list")[0])
    return f"{part.name} record {position}"


def _image_id(part: PreparedSplit, fields: Any, filename: str) -> str:
    if "image/id" not in part.keys:
        return PurePosixPath(filename).stem
    number = _values(fields, "image/id", "int64_list")
    return str(number[0]) if number else _text(_values(fields, "image/id", "bytes_list")[0])


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")
