"""Folders with VOC, COCO or YOLO annotations → a prepared TFDS data set and a report of defects."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import shard_utils

from scratchdet_jax.datasets import coco_scan, voc_scan, yolo_scan
from scratchdet_jax.datasets.choices import NO_CHOICES, Choices, check_names, choose_classes
from scratchdet_jax.datasets.coco_json import join_categories, read_coco
from scratchdet_jax.datasets.dividing import divide
from scratchdet_jax.datasets.objects import Contents, UsableImage, read_unchanged
from scratchdet_jax.datasets.report import PrepareReport, statistics
from scratchdet_jax.datasets.untrusted import as_user_errors, printable
from scratchdet_jax.datasets.writing import (
    exists,
    replace_dataset,
    restore,
    write_dataset,
    write_to_bucket,
)
from scratchdet_jax.errors import UserError, one_line, plural
from scratchdet_jax.files import writable_folder
from scratchdet_jax.paths import in_bucket, local_path, user_path
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
    data_dir = user_path(data_dir)
    check_name(name)
    choices.check()
    with as_user_errors(source):
        given = read()
    given = given._replace(fingerprint=choices.sign(given.fingerprint))
    directory = data_dir / builder.name / name / str(builder.VERSION)
    restore(directory)
    if exists(directory) and not force:
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
        if is_written and in_bucket(directory):
            write_to_bucket(lambda root: builder(root, contents, report), directory, data_dir)
        elif is_written and directory.exists():
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
        directory = user_path(data_dir) / builder.name / name / str(builder.VERSION)
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


class VocFolder(FolderBuilder):
    """A folder in VOC layout; features named as in TFDS's voc."""

    VERSION = tfds.core.Version("2.0.0")  # 2: in list order, with image/orientation

    id_feature = tfds.features.Text()
    object_features: ClassVar = {"is_difficult": np.bool_, "is_truncated": np.bool_}


class CocoFolder(FolderBuilder):
    """COCO annotations; features named as in TFDS's coco."""

    VERSION = tfds.core.Version("1.0.0")

    id_feature = np.int64
    object_features: ClassVar = {"area": np.int64, "id": np.int64, "is_crowd": np.bool_}


class YoloFolder(FolderBuilder):
    """YOLO text labels, which have no flags; image/id is the path without its suffix."""

    VERSION = tfds.core.Version("1.0.0")

    id_feature = tfds.features.Text()
    object_features: ClassVar = {}


class CocoSplit(NamedTuple):
    """The input of a split: an annotation file and the folder of its images."""

    name: str
    annotations: Path
    images: Path


def prepare_voc_folder(
    folder: str | Path,
    data_dir: str | Path,
    name: str,
    class_names: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    strict: bool = False,
    choices: Choices = NO_CHOICES,
    force: bool = False,
    images: str | None = None,
    annotations: str | None = None,
) -> PrepareReport:
    """Prepares a folder as the data set `voc_folder/<name>` by `prepare_dataset`.

    Boxes follow TFDS's voc: xmin / width, without −1. Nothing outside `folder` is read, unless
    `images` or `annotations` names a link to it.

    `folder` is in one of the layouts of `voc_layout`. Its splits are the lists
    ImageSets/Main/<split>.txt, else folders such as train and valid, else train alone; `splits`
    chooses some of them. `class_names` are in the order of their labels; other classes are left
    out. Without it, the classes found are used, sorted, or VOC's twenty in VOC's order if there are
    no others. `choices.classes` is not used. `images` and `annotations` name the folders of both,
    relative to `folder` or absolute inside it, if they are called otherwise than usual.

    Raises:
        UserError: the folder is not in a known layout, the class names are invalid, or an error of
            `prepare_dataset`.
    """
    NO_CHOICES._replace(classes=None if class_names is None else tuple(class_names)).check()
    choices = choices._replace(classes=None)

    def read() -> FolderInput:
        read_as = choices.names_before_renaming(class_names)
        listing = voc_scan.list_folder(local_path(folder), splits, images, annotations)
        return FolderInput(
            str(listing.layout.folder),
            voc_scan.fingerprint(listing, class_names, splits),
            lambda: voc_scan.scan(listing, read_as),
        )

    return prepare_dataset(str(folder), read, VocFolder, name, data_dir, choices, strict, force)


def prepare_coco_folder(
    splits: Sequence[CocoSplit],
    data_dir: str | Path,
    name: str,
    strict: bool = False,
    choices: Choices = NO_CHOICES,
    force: bool = False,
) -> PrepareReport:
    """Prepares COCO files as the data set `coco_folder/<name>` by `prepare_dataset`.

    Labels are 1…C in the order of the category ids (COCO's 80 ids up to 90 become 1…80); the ids
    are in report.json. Image ids must be integers and are kept, as are annotation ids, areas (as
    integers, in pixels) and crowd flags; segmentations are not. Nothing outside the named folders
    is read. `splits`: at least one; their categories must not contradict each other.

    Raises:
        UserError: a file or folder is missing, a file is not a COCO annotation file, categories
            with annotations contradict each other, or an error of `prepare_dataset`.
    """
    _check_splits(splits)
    source = ", ".join(str(split.annotations) for split in splits)

    def read() -> FolderInput:
        listings = {}
        for split in splits:
            print(f"reading {split.annotations}", flush=True)
            file = read_coco(split.annotations, test_set=True)
            listings[split.name] = coco_scan.list_split(file, split.images)
        categories, _ = join_categories([listing.file for listing in listings.values()])
        check_names(choices, [name for _, name in categories], source)
        return FolderInput(
            source, coco_scan.fingerprint(listings), lambda: coco_scan.scan(listings)
        )

    return prepare_dataset(source, read, CocoFolder, name, data_dir, choices, strict, force)


def prepare_yolo_folder(
    data: str | Path,
    data_dir: str | Path,
    name: str,
    folder: str | Path | None = None,
    strict: bool = False,
    choices: Choices = NO_CHOICES,
    force: bool = False,
) -> PrepareReport:
    """Prepares a YOLO data set as the data set `yolo_folder/<name>` by `prepare_dataset`.

    An image without a label file has no objects. Of polygons and rotated boxes the bounding boxes
    are used. The class numbers are kept as category ids, in report.json.

    `data` is a data.yaml as Ultralytics defines it: train, val and test are folders, lists of
    folders or .txt files that list images; names and nc; path. `folder` stands for its `path`;
    without both it is the folder that `data` is in. Nothing outside is read.

    Raises:
        UserError: a file or folder is missing, `data` is not a YOLO data file, no image has a label
            file, or an error of `prepare_dataset`.
    """

    def read() -> FolderInput:
        listing = yolo_scan.list_yolo(
            local_path(data), None if folder is None else local_path(folder)
        )
        check_names(choices, listing.class_names, str(data))
        return FolderInput(
            str(data), yolo_scan.fingerprint(listing), lambda: yolo_scan.scan(listing)
        )

    return prepare_dataset(str(data), read, YoloFolder, name, data_dir, choices, strict, force)


def _check_splits(splits: Sequence[CocoSplit]) -> None:
    if not splits:
        raise UserError("no split is given: give at least one as NAME:ANNOTATIONS:IMAGES")
    names = [split.name for split in splits]
    for split in splits:
        if not re.fullmatch(r"\w[\w-]*", split.name) or split.name.lower() == "all":
            raise UserError(
                f"{split.name!r} cannot name a split: use letters, digits, _ and - (and not 'all')"
            )
        if names.count(split.name) > 1:
            raise UserError(f"two splits are named {split.name!r}: give each its own name")
        if not split.images.is_dir():
            raise UserError(f"the image folder {split.images} of split {split.name} does not exist")
