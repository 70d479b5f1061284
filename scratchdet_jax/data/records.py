"""Prepared TFDS data sets → examples with random access; no TensorFlow."""

import bisect
import itertools
import re
import threading
import warnings
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypedDict

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from scratchdet_jax.data.builders.shapes import prepare_shapes
from scratchdet_jax.errors import UserError


class Example(TypedDict):
    """One labelled image as stored.

    Attributes:
      image: the encoded file (JPEG or PNG), as it was prepared.
      boxes: float32 [n, 4], (ymin, xmin, ymax, xmax) in [0, 1], each of positive area.
      labels: int32 [n], 1…C.
      ignore: bool [n], difficult (VOC) or crowd (COCO).
      filename: name of the image file.
      image_id: the data set's own id, or the file name without its ending.
    """

    image: bytes
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    filename: str
    image_id: str


class _Part(NamedTuple):
    """One split of one data set: its opened records, its features, and its name in messages."""

    name: str
    records: Any
    class_names: tuple[str, ...]


class DetectionSource:
    """The examples of one or several splits, in order, by position.

    Safe to read from several threads; pickled as its spec and opened again on unpickling.

    Attributes:
      spec: what was asked for, ``NAME[/CONFIG]:SPLIT[,…]``.
      data_dir: where the prepared data sets lie.
      class_names: label i is ``class_names[i - 1]``.
    """

    def __init__(self, spec: str, data_dir: str | Path) -> None:
        """Opens ``spec``; see open_source."""
        self.spec, self.data_dir = spec, str(data_dir)
        self._parts = [_open_part(name, split, self.data_dir) for name, split in _parse(spec)]
        self.class_names = self._parts[0].class_names
        for part in self._parts[1:]:
            if part.class_names != self.class_names:
                raise UserError(
                    f"{self._parts[0].name} and {part.name} cannot be joined: their classes differ "
                    f"({', '.join(self.class_names)}; {', '.join(part.class_names)})"
                )
        self._ends = list(itertools.accumulate(len(part.records) for part in self._parts))
        self._lock = threading.Lock()
        self._warned = False

    def __reduce__(self) -> tuple:
        return DetectionSource, (self.spec, self.data_dir)

    def __repr__(self) -> str:
        return f"DetectionSource({self.spec!r}, {len(self)} images)"

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        part, record = self._read(index)
        objects = record["objects"]
        count = len(objects["bbox"])
        boxes = np.asarray(objects["bbox"], np.float32).reshape(count, 4)
        boxes = np.clip(boxes, 0.0, 1.0)
        labels = np.asarray(objects["label"], np.int32).reshape(count) + 1
        ignore = np.zeros(count, bool)
        for flag in ("is_difficult", "is_crowd"):
            if flag in objects:
                ignore |= np.asarray(objects[flag], bool)
        filename = _filename(part, record, index)
        usable = np.all(boxes[:, 2:] > boxes[:, :2], axis=1) & (labels > 0)
        if not usable.all():
            self._warn(part, filename, count - int(usable.sum()))
        return Example(
            image=bytes(record["image"]), boxes=boxes[usable], labels=labels[usable],
            ignore=ignore[usable], filename=filename, image_id=_image_id(record, filename),
        )  # fmt: skip

    def image_id(self, index: int) -> str:
        """The data set's own id of the image at a position."""
        part, record = self._read(index)
        return _image_id(record, _filename(part, record, index))

    def _read(self, index: int) -> tuple[_Part, dict[str, Any]]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.spec} has {len(self)} images, there is no number {index}")
        which = bisect.bisect_right(self._ends, index)
        first = self._ends[which - 1] if which else 0
        part = self._parts[which]
        return part, part.records[index - first]

    def _warn(self, part: _Part, filename: str, count: int) -> None:
        with self._lock:
            warned, self._warned = self._warned, True
        if not warned:
            warnings.warn(
                f"{filename} of {part.name}: {count} of its boxes left out, for they have no area "
                "inside the image or no label; further ones are left out without a word",
                stacklevel=3,
            )


def open_source(spec: str, data_dir: str | Path) -> DetectionSource:
    """Opens data sets prepared with TFDS as ArrayRecord files.

    Args:
      spec: ``NAME[/CONFIG]:SPLIT``, or several joined by commas; SPLIT in TFDS's split language:
        ``shapes:train``, ``voc/2007:train+validation,voc/2012:train+validation``,
        ``voc_folder/cells:train[:80%]``. ``shapes`` is made at first use.
      data_dir: TFDS's data_dir.

    Raises:
      UserError: a data set is missing or stored as TFRecord (the sentence names the command that
        helps), a split is unknown or empty, the features are not those of detection, or the
        classes of joined data sets differ.
    """
    return DetectionSource(spec, data_dir)


def _parse(spec: str) -> list[tuple[str, str]]:
    """(NAME[/CONFIG], SPLIT) of every part."""
    parts = []
    for text in spec.split(","):
        name, _, split = (word.strip() for word in text.partition(":"))
        if not re.fullmatch(r"\w+(/[\w.+-]+)?", name) or not split:
            raise UserError(
                f"{text.strip()!r} in the data set {spec!r} is not NAME[/CONFIG]:SPLIT, such as "
                "voc/2007:train+validation"
            )
        parts.append((name, split))
    return parts


def _open_part(name: str, split: str, data_dir: str) -> _Part:
    if name == "shapes":
        prepare_shapes(data_dir)
    directory = _newest_version(name, data_dir)
    try:
        builder = tfds.builder_from_directory(directory)
    except Exception as error:
        raise UserError(
            f"{directory} cannot be read as a TFDS data set: {error}; delete it and prepare it "
            "again"
        ) from error
    class_names, decoders = _check_features(name, builder.info.features)
    splits = builder.info.splits
    known = ", ".join(f"{s} ({i.num_examples} images)" for s, i in splits.items())
    try:
        records = builder.as_data_source(split, decoders=decoders)
        # TFDS takes train[2:1] for train[2:].
        pieces = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
        if any(p.to is not None and p.to < (p.from_ or 0) for p in pieces):
            raise ValueError("a slice ends before it starts")
    except NotImplementedError:
        raise UserError(
            f"{name} in {data_dir} is stored as {builder.info.file_format.value}, which has no "
            f"random access: run `tfds build {name} --file_format=array_record "
            f"--data_dir={data_dir} --overwrite`"
        ) from None
    except ValueError as error:
        if "0 length" in str(error):  # array_record's way of saying so
            raise UserError(f"{name}:{split} holds no image; {name} has {known}") from None
        reason = str(error).splitlines()[-1]
        raise UserError(f"{name} has no split {split!r} ({reason}); it has {known}") from None
    return _Part(f"{name}:{split}", records, class_names)


def _newest_version(name: str, data_dir: str) -> epath.Path:
    """The directory of the highest version of a prepared data set."""
    root = epath.Path(data_dir) / name
    if versions := _versions(root):
        return root / max(versions, key=lambda v: tuple(map(int, v.split("."))))
    if configs := _configs(root):
        names = " or ".join(f"{name}/{config}" for config in configs)
        raise UserError(f"{name} comes in several configs: write {names}")
    raise UserError(
        f"there is no data set {name} in {data_dir} (it holds {_inventory(data_dir)}): "
        f"{_how_to_provide(name, data_dir)}"
    )


def _versions(directory: epath.Path) -> list[str]:
    if not directory.is_dir():
        return []
    return [
        path.name
        for path in directory.iterdir()
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and (path / "dataset_info.json").exists()
    ]


def _configs(directory: epath.Path) -> list[str]:
    if not directory.is_dir():
        return []
    return sorted(path.name for path in directory.iterdir() if _versions(path))


def _inventory(data_dir: str) -> str:
    root = epath.Path(data_dir)
    names = []
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        names += [path.name] if _versions(path) else []
        names += [f"{path.name}/{config}" for config in _configs(path)]
    return ", ".join(names) or "none"


def _how_to_provide(name: str, data_dir: str) -> str:
    """The commands that make a missing data set."""
    head, _, config = name.partition("/")
    own = "`python -m scratchdet_jax.tools.prepare voc --folder={} --name={} --data_dir={}`"
    if head == "voc_folder":
        return "run " + own.format("FOLDER", config or "NAME", data_dir)
    build = (
        f"run `tfds build {name} --file_format=array_record --data_dir={data_dir}` where "
        "TensorFlow is installed (only this preparation needs it)"
    )
    if head != "voc":
        return build
    year = config or "2007"
    command = own.format(f"VOCdevkit/VOC{year}", f"voc{year}", data_dir)
    return f"{build}; or, from an unpacked VOCdevkit, run {command} and use voc_folder/voc{year}"


def _check_features(name: str, features: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Class names, and decoders that leave pictures encoded."""
    objects = getattr(features["objects"], "feature", {}) if "objects" in features else {}
    if "image" not in features or not {"bbox", "label"} <= set(objects):
        raise UserError(
            f"{name} is not a detection data set of TFDS's form: it needs the features image and "
            f"objects with bbox and label, and has {', '.join(sorted(features))}"
        )
    label = objects["label"]
    if not isinstance(label, tfds.features.ClassLabel):
        raise UserError(f"{name}: objects/label must be a ClassLabel, which names its classes")
    # Any other picture (COCO's panoptic maps, say) stays encoded too: it is not looked at.
    decoders = {
        key: tfds.decode.SkipDecoding()
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Image)
    }
    return tuple(label.names), decoders


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _filename(part: _Part, record: dict[str, Any], index: int) -> str:
    if "image/filename" in record:
        return _text(record["image/filename"])
    return f"{part.name} record {index}"


def _image_id(record: dict[str, Any], filename: str) -> str:
    return _text(record["image/id"]) if "image/id" in record else PurePosixPath(filename).stem
