"""A folder of images and VOC annotations → a prepared TFDS data set and a report of every defect.

PASCAL VOC's layout: JPEGImages/ID.jpg (or another image format), Annotations/ID.xml, and lists of
ids in ImageSets/Main/SPLIT.txt. `voc_layout` has the others.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from scratchdet_jax.datasets.choices import NO_CHOICES, Choices
from scratchdet_jax.datasets.folder_builder import FolderBuilder, FolderInput, prepare_dataset
from scratchdet_jax.datasets.report import PrepareReport
from scratchdet_jax.datasets.voc_scan import fingerprint, list_folder, scan


class VocFolder(FolderBuilder):
    """A folder in VOC layout; features named as in TFDS's voc."""

    VERSION = tfds.core.Version("2.0.0")  # 2: in list order, with image/orientation

    id_feature = tfds.features.Text()
    object_features: ClassVar = {"is_difficult": np.bool_, "is_truncated": np.bool_}


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

    Args:
        folder: in one of the layouts of `voc_layout`. Its splits are the lists
            ImageSets/Main/<split>.txt, else folders such as train and valid, else train alone.
        data_dir: TFDS's data_dir.
        name: name of the data set.
        class_names: classes in the order of their labels; others are left out. None: the classes
            found, sorted, or VOC's twenty in VOC's order if there are no others.
        splits: splits to prepare; None: all.
        strict: treat any defect as an error and write nothing.
        choices: classes to rename or to drop, and a division; `classes` is not used.
        force: prepare it again if it exists, and replace it.
        images: folder of the images, relative to `folder` or absolute inside it; None: found.
        annotations: the same for the annotations.

    Raises:
        UserError: the folder is not in a known layout, the class names are invalid, or an error of
            `prepare_dataset`.
    """
    NO_CHOICES._replace(classes=None if class_names is None else tuple(class_names)).check()
    choices = choices._replace(classes=None)

    def read() -> FolderInput:
        read_as = choices.names_before_renaming(class_names)
        listing = list_folder(Path(folder), splits, images, annotations)
        return FolderInput(
            str(listing.layout.folder),
            fingerprint(listing, class_names, splits),
            lambda: scan(listing, read_as),
        )

    return prepare_dataset(str(folder), read, VocFolder, name, data_dir, choices, strict, force)
