"""Common to VOC, COCO and YOLO folders: checked images → a TFDS data set and a report."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import shard_utils

from scratchdet_jax.datasets.choices import Choices, choose_classes
from scratchdet_jax.datasets.dividing import divide
from scratchdet_jax.datasets.objects import Contents, UsableImage, read_unchanged
from scratchdet_jax.datasets.report import PrepareReport, statistics
from scratchdet_jax.datasets.untrusted import as_user_errors, printable
from scratchdet_jax.datasets.writing import replace_dataset, restore, write_dataset
from scratchdet_jax.errors import UserError, one_line, plural, writable_folder
from scratchdet_jax.progress import Progress

Examples = Iterator[tuple[str | int, dict[str, Any]]]  # keys and features


class FolderInput(NamedTuple):
    """A folder or annotation file of the user, listed but not yet checked.

    Attributes:
        source: its path, for messages.
        fingerprint: hash of its contents and of the options with which it is read.
        scan: reads and checks it.
    """

    source: str
    fingerprint: str
    scan: Callable[[], Contents]


class FolderBuilder(tfds.core.ShardBasedBuilder):
    """Writes checked images unchanged and in order, with at most one shard in memory.

    (TFDS's GeneratorBasedBuilder shuffles, which needs TensorFlow above 1 GB.)

    Attributes:
        id_feature: the TFDS feature of image/id.
        object_features: the TFDS features of an object besides its label and its box.
    """

    # Nothing is downloaded. TFDS's search for checksums of downloads would import
    # importlib_resources, which neither TFDS nor etils installs.
    url_infos = None

    id_feature: ClassVar[Any]
    object_features: ClassVar[Mapping[str, Any]]

    def __init__(self, data_dir: str | Path, contents: Contents, report: PrepareReport) -> None:
        """Takes what is written; `report` gives the name and the classes, and is stored too."""
        self._contents, self._report = contents, report
        name = report.name.rpartition("/")[2]
        config = tfds.core.BuilderConfig(name=name, description=report.source)
        super().__init__(data_dir=str(data_dir), config=config)

    def _info(self) -> tfds.core.DatasetInfo:
        names = list(self._report.class_names)
        features = {
            "image": tfds.features.Image(),
            "image/filename": tfds.features.Text(),
            "image/id": self.id_feature,
            "image/orientation": np.int32,
            "objects": tfds.features.Sequence(
                {
                    "label": tfds.features.ClassLabel(names=names),
                    "bbox": tfds.features.BBoxFeature(),
                    **self.object_features,
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
        return {split: self._shards(split) for split in self._contents.splits}

    def _shards(self, split: str) -> list[Callable[[], Examples]]:
        images = self._contents.splits[split]
        size = sum(image.stamp.size for image in images)
        count = shard_utils.ShardConfig.calculate_number_shards(size, len(images))
        ends = shard_utils.get_shard_boundaries(len(images), count)
        progress = Progress(len(images), f"writing {split}", "image")
        return [
            functools.partial(self._generate, images[start:end], progress)
            for start, end in zip([0, *ends], ends, strict=False)
        ]

    def _generate(self, images: Sequence[UsableImage], progress: Progress) -> Examples:
        for image in images:
            yield (
                image.image_id,
                {
                    "image": read_unchanged(image),
                    "image/filename": image.filename,
                    "image/id": image.image_id,
                    "image/orientation": image.header.orientation,
                    "objects": [
                        {
                            **item.features,
                            "label": self._report.class_names.index(item.name),
                            "bbox": tfds.features.BBox(*item.box),
                        }
                        for item in image.objects
                    ],
                },
            )
            progress.update()
            if progress.is_complete:
                progress.close()


def prepare_dataset(
    source: str,
    read: Callable[[], FolderInput],
    builder: type[FolderBuilder],
    name: str,
    data_dir: str | Path,
    choices: Choices,
    strict: bool = False,
    force: bool = False,
) -> PrepareReport:
    """Prepares the data set `<builder>/<name>` unless it exists, and prints the report.

    Every image is decoded completely and every box checked. Unusable data are left out, counted
    and named; the rest is used. Images are stored byte for byte; boxes refer to them as displayed,
    after the turn in image/orientation. The data set appears under its name only when it is
    complete; its directory also contains report.json.

    Args:
        source: what the user named, for messages.
        read: lists the input; `choices` are not part of its fingerprint.
        builder: the class that writes the data set.
        name: name of the data set; see `check_name`.
        data_dir: TFDS's data_dir.
        choices: classes and division.
        strict: treat any defect as an error and write nothing.
        force: prepare again what exists; it is replaced when the new data set is complete.

    Returns:
        The report, read back if the data set existed.

    Raises:
        UserError: nothing is usable, there are defects and `strict` is set, `name` is taken by
            other data, a file changed meanwhile, or the data folder cannot be written.
    """
    check_name(name)
    choices.check()
    with as_user_errors(source):
        given = read()
    given = given._replace(fingerprint=choices.sign(given.fingerprint))
    data_dir = Path(data_dir)
    directory = data_dir / builder.name / name / str(builder.VERSION)
    restore(directory)
    if directory.exists() and not force:
        report = _stored_report(directory, given, choices)
        splits = ", ".join(f"{name} {plural(n, 'image')}" for name, n in report.images.items())
        print(
            f"{report.name}: already prepared in {report.directory} ({splits}; "
            f"{plural(len(report.defects), 'defect')}, see report.json)",
            flush=True,
        )
        _refuse_defects(report, strict, "it was prepared with them")
        return report
    writable_folder(data_dir, "the data folder")
    with as_user_errors(given.source):
        contents = choose_classes(given.scan(), choices, given.source)
        contents = divide(contents, choices, given.source)
        report = PrepareReport(
            name=f"{builder.name}/{name}",
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
        _refuse_empty(given.source, report, contents.test_set)
        is_written = not (strict and report.defects)
        if is_written and directory.exists():
            replace_dataset(lambda root: builder(root, contents, report), directory, data_dir)
        elif is_written:
            write_dataset(lambda: builder(data_dir, contents, report))
    print(report.summary(stored=is_written), flush=True)
    _refuse_defects(report, strict, "nothing was written")
    return _stored_report(directory, given, choices)  # another process may have been faster


def check_name(name: str) -> None:
    """Raises a UserError if the text cannot name a data set."""
    if not re.fullmatch(r"\w[\w.+-]*", name) or re.fullmatch(r"\d+\.\d+\.\d+", name):
        raise UserError(
            f"{name!r} cannot name a data set: use letters and digits, with _ . + - inside"
        )


def stored_choices(data_dir: str | Path, builder: type[FolderBuilder], name: str) -> Choices:
    """Returns the choices of an existing data set; none if it does not exist."""
    try:
        directory = Path(data_dir) / builder.name / name / str(builder.VERSION)
        return Choices.from_record(_read_report(directory).choices)
    except ValueError:
        return Choices()


def _read_report(directory: Path) -> PrepareReport:
    """Reads the report of an existing data set; a ValueError says why that is impossible."""
    try:
        return PrepareReport.from_json((directory / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(one_line(error)) from None


def _stored_report(directory: Path, given: FolderInput, choices: Choices) -> PrepareReport:
    """Reads the report of an existing data set.

    Raises:
        UserError: there is none, or the set was prepared from another input or with other options.
    """
    try:
        report = _read_report(directory)
    except ValueError as error:
        raise UserError(
            f"{directory} has no readable report.json ({error}): delete the directory, or add "
            f"--force, to prepare {given.source}"
        ) from None
    if report.fingerprint != given.fingerprint:
        same = report.choices == choices.record()
        what = "files, classes or splits differ from those" if same else "options were not those"
        raise UserError(
            f"{report.name} in {directory} was prepared from {report.source}, and the {what} given "
            "now: add --force (of the tool prepare) to prepare it again in its place, delete that "
            "directory, or choose another name"
        )
    return report


def _refuse_empty(source: str, report: PrepareReport, test_set: bool) -> None:
    """Raises a UserError if there is no usable image or, but in a test set, no usable box."""
    if report.images and (test_set or sum(report.boxes.values())):
        return
    what = "box" if report.images else "image"
    causes = ", ".join(f"{count} × {kind}" for kind, count in report.counts().items())
    first = report.defects[0] if report.defects else None
    example = f"; the first: {first.file}: {first.reason}" if first else ""
    raise UserError(f"{source} has no usable {what}: {causes or 'it is empty'}{example}")


def _refuse_defects(report: PrepareReport, strict: bool, consequence: str) -> None:
    if strict and report.defects:
        raise UserError(
            f"{report.source} has {plural(len(report.defects), 'defect')}, which --strict does not "
            f"allow: {consequence}"
        )
