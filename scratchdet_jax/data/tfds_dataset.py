"""Finds, checks and opens data sets prepared by TFDS as ArrayRecord files, without TensorFlow."""

import bisect
import itertools
import json
import re
import shlex
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from scratchdet_jax.data import coco_classes
from scratchdet_jax.errors import UserError, one_line, plural
from scratchdet_jax.paths import in_bucket

INFO = "dataset_info.json"  # of a complete data set; in a bucket, it is written last

# TFDS 4.9.10 asks for the last three only when its command fails without them.
FOR_TFDS = (
    "(`pip install tensorflow tensorflow-datasets array_record importlib_resources apache-beam "
    "mlcroissant`; nothing else here needs TensorFlow)"
)

# Splits of TFDS's own sets whose annotations are not published.
_UNLABELLED = {"voc/2012": {"test"}, "coco/2014": {"test", "test2015"}, "coco/2017": {"test"}}


# Accepted formats of box features; a plain tensor has none.
_YXYX = ("None", str(getattr(tfds.features.BBoxFeature(), "bbox_format", None)))


class NoDataSetError(UserError):
    """A data set was never prepared.

    Attributes:
        dataset: NAME[/CONFIG].
    """

    def __init__(self, message: str, dataset: str) -> None:
        super().__init__(message)
        self.dataset = dataset

    def with_advice(self, advice: str) -> "NoDataSetError":
        """Returns the same error with the end of its sentence: what to do."""
        return NoDataSetError(f"{self}: {advice}", self.dataset)


class NoSplitError(UserError):
    """A data set lacks a split.

    Attributes:
        dataset: NAME[/CONFIG].
        known: names of the splits that it has.
    """

    def __init__(self, message: str, dataset: str, known: Iterable[str]) -> None:
        super().__init__(message)
        self.dataset, self.known = dataset, tuple(known)


class PreparedSplit(NamedTuple):
    """One split of a prepared data set, its records readable by position.

    Safe to read from several threads.

    Attributes:
        name: NAME[/CONFIG]:SPLIT, for messages.
        unlabelled: the name of a contained split that is published without annotations, or "".
        class_names: in the order of the labels.
        category_ids: the original COCO category id of each label, or None.
        keys: flat names of the features, such as objects/bbox.
        shards: the files, and how many records of each belong to the split.
        records: array_record's data source.
    """

    name: str
    unlabelled: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...] | None
    keys: frozenset[str]
    shards: list[Any]
    records: Any

    def most_boxes(self) -> int | None:
        """Reads the largest number of boxes in an image from report.json; None if unknown.

        Sets prepared by TFDS have no report.
        """
        report = epath.Path(self.shards[0].filename).parent / "report.json"
        try:
            return int(json.loads(report.read_text(encoding="utf-8"))["most_boxes"]) or None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def read(self, index: int) -> Any:
        """Reads the fields of a record by flat name, as TensorFlow's Example holds them.

        Raises:
            UserError: the file is damaged.
        """
        try:
            return tf_example_pb2.Example.FromString(self.records[index]).features.feature
        except Exception as error:  # array_record has no exception types of its own
            raise self.damaged(index, error) from error

    def damaged(self, index: int, reason: object) -> UserError:
        """Returns the error for an unusable record: its number, its file and the reason."""
        ends = list(itertools.accumulate(shard.take for shard in self.shards))
        file = self.shards[bisect.bisect_right(ends, index)].filename
        return UserError(
            f"record {index} of {self.name} cannot be read ({_cause(reason)}): {file} is "
            "damaged; delete the data set and prepare it again"
        )


def open_prepared(name: str, split: str, data_dir: str) -> PreparedSplit:
    """Opens a split after checking that its files are intact.

    Raises:
        UserError: the data set is missing, damaged, unreadable, stored as TFRecord or not a
            detection data set, or the split is unknown or empty.
    """
    directory = newest_version(name, data_dir)
    builder = _open_builder(directory)
    keys = _check_features(name, builder.info.features)
    class_names = _class_names(directory, builder.info.features["objects"].feature["label"])
    members = _split_names(name, split, builder.info.splits)
    try:
        source = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
    except NotImplementedError:
        raise UserError(
            f"{name} in {data_dir} is stored as {builder.info.file_format.value}, which has no "
            "random access: run `tfds convert_format "
            f"--dataset_version_dir={shlex.quote(str(directory))} --out_file_format=array_record`, "
            f"or build it again with `{tfds_build(name, data_dir)} --overwrite`, in a separate "
            f"environment {FOR_TFDS}"
        ) from None
    except ValueError as error:
        if "0 length" not in str(error):  # array_record's message for an empty split
            raise UserError(_damage(directory, error)) from error
        known = _known(builder.info.splits)
        raise UserError(f"{name}:{split} has no images; {name} has {known}") from None
    shards = builder.info.splits[split].file_instructions
    _check_shards(name, shards)
    return PreparedSplit(
        f"{name}:{split}",
        next(iter(members & _UNLABELLED.get(name, set())), ""),
        class_names,
        _category_ids(name, directory, class_names),
        keys,
        shards,
        source.data_source,
    )


def is_prepared(name: str, data_dir: str) -> bool:
    """Returns whether a version of the data set exists."""
    return bool(_versions(epath.Path(data_dir) / name))


def configs(name: str, data_dir: str) -> list[str]:
    """Returns every CONFIG for which NAME/CONFIG exists."""
    directory = epath.Path(data_dir) / name
    return [config for config in _list(directory) if _versions(directory / config)]


def _open_builder(directory: epath.Path) -> Any:
    try:
        builder = tfds.builder_from_directory(directory)
    except Exception as error:
        raise UserError(_damage(directory, error)) from error
    if builder.info.features is None:
        raise UserError(_damage(directory, "features.json is missing"))
    return builder


def _split_names(name: str, split: str, splits: Any) -> set[str]:
    """Returns the splits used by an expression in TFDS's split language."""
    try:
        pieces = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
        # TFDS reads train[2:1] as train[2:].
        if any(piece.to is not None and piece.to < (piece.from_ or 0) for piece in pieces):
            raise ValueError("a slice ends before it starts")
    except (ValueError, AssertionError, KeyError) as error:
        reason = str(error).splitlines()[-1] if str(error) else "it cannot be parsed"
        raise NoSplitError(
            f"{name} has no split {split!r} ({reason}); it has {_known(splits)}", name, splits
        ) from None
    return {piece.splitname for piece in pieces}


def _known(splits: Any) -> str:
    counts = (f"{name} ({plural(info.num_examples, 'image')})" for name, info in splits.items())
    return ", ".join(counts) or "none"


def _check_features(name: str, features: Any) -> frozenset[str]:
    """Returns the flat names of the features; refuses features that hold no detection data."""
    kinds, fields = tfds.features, {}
    known = dict(features.items())  # TFDS's FeaturesDict has no get
    objects = known.get("objects")
    # A tfds.features.Dataset is a Sequence too, but is stored differently.
    if isinstance(objects, kinds.Sequence) and not isinstance(objects, kinds.Dataset):
        fields = dict(objects.feature.items()) if hasattr(objects.feature, "items") else {}
    box = fields.get("bbox")
    ordered = box and box.shape == (4,) and str(getattr(box, "bbox_format", None)) in _YXYX
    labelled = isinstance(fields.get("label"), kinds.ClassLabel)
    if not (isinstance(known.get("image"), kinds.Image) and ordered and labelled):
        raise UserError(
            f"{name} is not a detection data set in TFDS's form: it needs the features image, "
            "objects/bbox (ymin, xmin, ymax, xmax in [0, 1], TFDS's default) and objects/label (a "
            f"ClassLabel), but it has {', '.join(sorted(features))}"
        )
    return frozenset(features) | {f"objects/{key}" for key in fields}


def _class_names(directory: epath.Path, label: tfds.features.ClassLabel) -> tuple[str, ...]:
    """Reads the class names, because TFDS ignores a missing or wrong file of names."""
    file = directory / "objects-label.labels.txt"
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
        names = tuple(line.strip() for line in lines if line.strip())
        if len(names) == label.num_classes == len(set(names)):
            return names
        reason = f"it has {plural(len(set(names)), 'different name')}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or _cause(error)
    raise UserError(
        f"{file} does not name the {plural(label.num_classes, 'class')} ({reason}): write one name "
        "per line, or prepare the data set again"
    )


def _check_shards(name: str, shards: list[Any]) -> None:
    """Makes sure that no file is truncated or replaced, which would shrink the data set."""
    with ThreadPoolExecutor(16) as threads:
        flaws = list(threads.map(_flaw, shards))
    for shard, flaw in zip(shards, flaws, strict=True):
        if flaw:
            raise UserError(f"{shard.filename} of {name} {flaw}")


def _flaw(shard: Any) -> str:
    """Says what is wrong with a file, or ""; damaged records are found only when read."""
    advice = "check its permissions, or delete the data set and prepare it again"
    try:
        with epath.Path(shard.filename).open("rb"):
            pass  # array_record does not report why it cannot open a file
        reader = ArrayRecordReader(shard.filename, options="readahead_buffer_size:0")
        count = reader.num_records()
        reader.close()
    except Exception as error:  # array_record has no exception types of its own
        return f"cannot be read ({getattr(error, 'strerror', None) or _cause(error)}): {advice}"
    if count == shard.examples_in_shard:
        return ""
    return (
        f"is damaged or of another data set: it has {plural(count, 'readable record')} instead of "
        f"{shard.examples_in_shard}; {advice}"
    )


def _category_ids(
    name: str, directory: epath.Path, class_names: tuple[str, ...]
) -> tuple[int, ...] | None:
    """Reads report.json of own COCO and YOLO sets, or COCO's table for TFDS's coco; else None."""
    head = name.partition("/")[0]
    if head == "coco" and set(class_names) <= set(coco_classes.IDS):
        return tuple(coco_classes.IDS[class_name] for class_name in class_names)
    if head not in ("coco_folder", "yolo_folder"):
        return None
    try:
        ids = json.loads((directory / "report.json").read_text())["category_ids"]
        if len(ids) != len(class_names) or len(set(ids)) < len(ids):
            raise ValueError(f"category_ids does not match the {plural(len(class_names), 'class')}")
        return tuple(map(int, ids))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(_damage(directory, f"report.json: {_cause(error)}")) from None


def newest_version(name: str, data_dir: str) -> epath.Path:
    """Returns the directory of the highest version of a prepared data set."""
    root = epath.Path(data_dir) / name
    if versions := _versions(root):
        directory = root / max(versions, key=lambda v: tuple(map(int, v.split("."))))
        if INFO not in _list(directory):
            raise UserError(_damage(directory, f"it has no {INFO}"))
        return directory
    if found := configs(name, data_dir):
        names = " or ".join(f"{name}/{config}" for config in found)
        raise UserError(f"{name} has several configs: write {names}")
    raise NoDataSetError(
        f"there is no data set {name} in {data_dir} (it has {inventory(data_dir)})", name
    )


def _list(directory: epath.Path) -> list[str]:
    """Lists the names in a directory; empty if it does not exist."""
    try:
        return sorted(path.name for path in directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{directory} cannot be read: {error.strerror or error}") from None


def _versions(directory: epath.Path) -> list[str]:
    names = [name for name in _list(directory) if re.fullmatch(r"\d+\.\d+\.\d+", name)]
    if in_bucket(directory):  # what is being written, or was left by a killed writer, is absent
        return [name for name in names if (directory / name / INFO).exists()]
    return names


def inventory(data_dir: str) -> str:
    """Returns the names of the prepared data sets, in words."""
    root = epath.Path(data_dir)
    names = []
    for name in _list(root):
        names += [name] if _versions(root / name) else []
        names += [f"{name}/{config}" for config in configs(name, data_dir)]
    return ", ".join(names) or "none"


def tfds_build(name: str, data_dir: str) -> str:
    """Returns TFDS's command that makes one of its data sets."""
    return f"tfds build {name} --file_format=array_record --data_dir={shlex.quote(data_dir)}"


def _damage(directory: epath.Path, reason: object) -> str:
    return (
        f"{directory} cannot be read as a TFDS data set ({_cause(reason)}): check its "
        "permissions, or delete it and prepare it again"
    )


def _cause(reason: object) -> str:
    """Puts an error's text on one line, without C++'s source positions after a semicolon."""
    return one_line(reason).partition(";")[0]
