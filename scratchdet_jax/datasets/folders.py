"""Folders with VOC, COCO or YOLO annotations → a prepared TFDS data set and a report of defects."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from scratchdet_jax.datasets import coco_scan, voc_scan, yolo_scan
from scratchdet_jax.datasets.choices import NO_CHOICES, Choices, check_names
from scratchdet_jax.datasets.coco_json import join_categories, read_coco
from scratchdet_jax.datasets.folder_builder import FolderBuilder, FolderInput, prepare_dataset
from scratchdet_jax.datasets.report import PrepareReport
from scratchdet_jax.errors import UserError


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
        listing = voc_scan.list_folder(Path(folder), splits, images, annotations)
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
        listing = yolo_scan.list_yolo(Path(data), None if folder is None else Path(folder))
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
