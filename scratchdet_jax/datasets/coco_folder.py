"""COCO annotation files and image folders → a prepared TFDS data set and a report."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from scratchdet_jax.datasets.choices import NO_CHOICES, Choices, check_names
from scratchdet_jax.datasets.coco_json import join_categories, read_coco
from scratchdet_jax.datasets.coco_scan import fingerprint, list_split, scan
from scratchdet_jax.datasets.folder_builder import FolderBuilder, FolderInput, prepare_dataset
from scratchdet_jax.datasets.report import PrepareReport
from scratchdet_jax.errors import UserError


class CocoSplit(NamedTuple):
    """The input of a split: an annotation file and the folder of its images."""

    name: str
    annotations: Path
    images: Path


class CocoFolder(FolderBuilder):
    """COCO annotations; features named as in TFDS's coco."""

    VERSION = tfds.core.Version("1.0.0")

    id_feature = np.int64
    object_features: ClassVar = {"area": np.int64, "id": np.int64, "is_crowd": np.bool_}


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
    is read.

    Args:
        splits: at least one; their categories must not contradict each other.
        data_dir: TFDS's data_dir.
        name: name of the data set.
        strict: treat any defect as an error and write nothing.
        choices: classes to rename, to keep or to drop, and a division.
        force: prepare it again if it exists, and replace it.

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
            listings[split.name] = list_split(file, split.images)
        categories, _ = join_categories([listing.file for listing in listings.values()])
        check_names(choices, [name for _, name in categories], source)
        return FolderInput(source, fingerprint(listings), lambda: scan(listings))

    return prepare_dataset(source, read, CocoFolder, name, data_dir, choices, strict, force)


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
