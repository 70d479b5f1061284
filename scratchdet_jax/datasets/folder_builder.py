"""Common to VOC, COCO and YOLO folders: checked images → a TFDS data set and a report."""

import abc
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import shard_utils

from scratchdet_jax.datasets.checks import Journal
from scratchdet_jax.datasets.choices import Choices, choose_classes, note_unused_classes
from scratchdet_jax.datasets.dividing import divide
from scratchdet_jax.datasets.objects import CocoItem, Contents, UsableImage, VocItem, YoloItem
from scratchdet_jax.datasets.report import PrepareReport, statistics
from scratchdet_jax.datasets.stored import INVENTORY, FolderInput, stored_report
from scratchdet_jax.datasets.untrusted import as_user_errors, printable, read_inside, stamp_inside
from scratchdet_jax.datasets.writing import replace_dataset, restore, write_dataset
from scratchdet_jax.errors import UserError, plural, writable_folder
from scratchdet_jax.progress import Progress

Examples = Iterator[tuple[str | int, dict[str, Any]]]  # keys and features


class FolderBuilder(tfds.core.ShardBasedBuilder):
    """Writes checked images unchanged and in order, with at most one shard in memory.

    (TFDS's GeneratorBasedBuilder shuffles, which needs TensorFlow above 1 GB.)
    """

    # Nothing is downloaded. TFDS's search for checksums of downloads would import
    # importlib_resources, which neither TFDS nor etils installs.
    url_infos = None

    def __init__(
        self,
        data_dir: str | Path,
        contents: Contents,
        report: PrepareReport,
        inventory: Mapping[str, str],
    ) -> None:
        """`report`, which gives the name and the classes, and `inventory` are stored too."""
        self._contents, self._report, self._inventory = contents, report, inventory
        name = report.name.rpartition("/")[2]
        config = tfds.core.BuilderConfig(name=name, description=report.source)
        super().__init__(data_dir=str(data_dir), config=config)

    @abc.abstractmethod
    def _id_feature(self) -> Any:
        """The TFDS feature of image/id."""

    @abc.abstractmethod
    def _object_features(self) -> dict[str, Any]:
        """The TFDS features of an object besides its label and its box."""

    def _info(self) -> tfds.core.DatasetInfo:
        names = list(self._report.class_names)
        features = {
            "image": tfds.features.Image(),
            "image/filename": tfds.features.Text(),
            "image/id": self._id_feature(),
            "image/orientation": np.int32,
            "objects": tfds.features.Sequence(
                {
                    "label": tfds.features.ClassLabel(names=names),
                    "bbox": tfds.features.BBoxFeature(),
                    **self._object_features(),
                }
            ),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Prepared from {self._report.source}.",
            features=tfds.features.FeaturesDict(features),
        )

    def _shard_iterators_per_split(
        self, dl_manager: Any
    ) -> dict[str, list[Callable[[], Examples]]]:
        # TFDS renames the directory into place at the end: data and report appear together.
        (self.data_path / "report.json").write_text(self._report.to_json(), encoding="utf-8")
        (self.data_path / INVENTORY).write_text(json.dumps(self._inventory), encoding="utf-8")
        return {split: self._shards(split) for split in self._contents.splits}

    def _shards(self, split: str) -> list[Callable[[], Examples]]:
        images = self._contents.splits[split]
        size = sum(image.stamp.size for image in images)
        count = shard_utils.ShardConfig.calculate_number_shards(size, len(images))
        ends = shard_utils.get_shard_boundaries(len(images), count)
        progress = Progress(len(images), f"writing {split}", "image")
        return [
            functools.partial(self._generate, split, images[start:end], progress)
            for start, end in zip([0, *ends], ends, strict=False)
        ]

    def _generate(self, split: str, images: Sequence[UsableImage], progress: Progress) -> Examples:
        root = self._contents.roots[split]
        for image in images:
            yield (
                image.image_id,
                {
                    "image": _read_unchanged(image, root),
                    "image/filename": image.filename,
                    "image/id": image.image_id,
                    "image/orientation": image.orientation,
                    "objects": [self._object(item) for item in image.objects],
                },
            )
            progress.update()
            if progress.is_complete:
                progress.close()

    def _object(self, item: VocItem | CocoItem | YoloItem) -> dict[str, Any]:
        """Returns the features of an object."""
        fields = item._asdict()
        name, box = fields.pop("name"), fields.pop("box")
        label = self._report.class_names.index(name)
        return {**fields, "label": label, "bbox": tfds.features.BBox(*box)}


def prepare_dataset(
    given: FolderInput,
    builder: type[FolderBuilder],
    name: str,
    data_dir: str | Path,
    choices: Choices,
    strict: bool = False,
    force: bool = False,
) -> PrepareReport:
    """Prepares the data set `<builder>/<name>` unless it exists, and prints the report.

    Args:
        given: the input; `choices` are not part of its fingerprint yet.
        builder: the class that writes the data set.
        name: name of the data set; see `check_name`.
        data_dir: TFDS's data_dir.
        choices: classes and division.
        strict: treat any defect as an error and write nothing.
        force: prepare again what exists; it is replaced at the end, in one step.

    Returns:
        The report, read back if the data set existed.

    Raises:
        UserError: nothing is usable, there are defects and `strict` is set, `name` is taken by
            other data, a file changed meanwhile, or the data folder cannot be written.
    """
    data_dir = Path(data_dir)
    directory = data_dir / builder.name / name / str(builder.VERSION)
    given = given._replace(fingerprint=choices.sign(given.fingerprint))
    restore(directory)
    if directory.exists() and not force:
        report = stored_report(directory, given)
        print(_reuse_message(report), flush=True)
        _refuse_defects(report, strict, "it was prepared with them")
        return report
    writable_folder(data_dir, "the data folder")
    journal_file = data_dir / f".preparing.{builder.name}.{name}.jsonl"
    with as_user_errors(given.source), Journal(journal_file) as journal:
        contents = _chosen(given.scan(journal), choices, given.source)
        report = _report(f"{builder.name}/{name}", directory, given, contents, choices)
        _refuse_empty(given.source, report, contents.test_set)
        is_written = not (strict and report.defects)
        if is_written:
            files = given.inventory()
            _write(lambda root: builder(root, contents, report, files), directory, data_dir)
            journal.remove()
    print(report.summary(stored=is_written), flush=True)
    _refuse_defects(report, strict, "nothing was written")
    return stored_report(directory, given)  # another process may have been faster


def _chosen(contents: Contents, choices: Choices, source: str) -> Contents:
    """Returns the contents with the chosen classes, divided into splits."""
    contents = choose_classes(contents, choices, source)
    if contents.category_ids is not None and not contents.test_set:
        # Otherwise the classes are those found, or no box is known.
        contents = note_unused_classes(contents)
    return divide(contents, choices, source)


def _report(
    name: str, directory: Path, given: FolderInput, contents: Contents, choices: Choices
) -> PrepareReport:
    return PrepareReport(
        name=name,
        source=printable(given.source),
        directory=printable(str(directory)),
        fingerprint=given.fingerprint,
        class_names=contents.class_names,
        category_ids=contents.category_ids,
        left_out=contents.left_out,
        notes=contents.notes,
        defects=contents.defects,
        choices=choices.record(),
        division=contents.division,
        **statistics(contents.splits, contents.class_names),
    )


def _write(make_builder: Callable[[Path], FolderBuilder], directory: Path, data_dir: Path) -> None:
    """Writes the data set, in place of the one in `directory` if there is one."""
    if directory.exists():
        replace_dataset(make_builder, directory, data_dir)
    else:
        write_dataset(lambda: make_builder(data_dir))


def check_name(name: str) -> None:
    """Raises a UserError if the text cannot name a data set."""
    if not re.fullmatch(r"\w[\w.+-]*", name) or re.fullmatch(r"\d+\.\d+\.\d+", name):
        raise UserError(
            f"{name!r} cannot name a data set: use letters and digits, with _ . + - inside"
        )


def _refuse_empty(source: str, report: PrepareReport, test_set: bool) -> None:
    """Raises a UserError if there is no usable image or, but in a test set, no usable box."""
    if report.images and (test_set or sum(report.boxes.values())):
        return
    what = "box" if report.images else "image"
    causes = ", ".join(f"{count} × {kind}" for kind, count in report.counts().items())
    first = report.defects[0] if report.defects else None
    example = f"; the first: {first.file}: {first.reason}" if first else ""
    raise UserError(f"{source} has no usable {what}: {causes or 'it is empty'}{example}")


def _read_unchanged(image: UsableImage, root: Path) -> bytes:
    """The image's bytes, if the file has not changed since it was checked."""
    try:
        data = read_inside(image.path, root, image.stamp.size)
        if stamp_inside(image.path, root, image.stamp.size) == image.stamp:
            return data
        reason = "its size or modification time differs"
    except ValueError as error:
        reason = str(error)
    raise UserError(
        f"{image.path} changed after it was checked ({reason}): run the same command again"
    )


def stored_choices(data_dir: str | Path, builder: type[FolderBuilder], name: str) -> Choices:
    """The choices that an existing data set was prepared with; none if it does not exist."""
    directory = Path(data_dir) / builder.name / name / str(builder.VERSION)
    try:
        text = (directory / "report.json").read_text(encoding="utf-8")
        return Choices.from_record(PrepareReport.from_json(text).choices)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Choices()


def _reuse_message(report: PrepareReport) -> str:
    splits = ", ".join(
        f"{split} {plural(count, 'image')}" for split, count in report.images.items()
    )
    return (
        f"{report.name}: already prepared in {report.directory} ({splits}; "
        f"{plural(len(report.defects), 'defect')}, see report.json)"
    )


def _refuse_defects(report: PrepareReport, strict: bool, consequence: str) -> None:
    if strict and report.defects:
        raise UserError(
            f"{report.source} has {plural(len(report.defects), 'defect')}, which --strict does not "
            f"allow: {consequence}"
        )
