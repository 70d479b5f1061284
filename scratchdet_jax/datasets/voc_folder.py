"""A folder of images and VOC annotations → a prepared TFDS data set and a report of every defect.

PASCAL VOC's layout: JPEGImages/ID.jpg (or another image format), Annotations/ID.xml, and lists of
ids in ImageSets/Main/SPLIT.txt. `voc_layout` has the others.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from scratchdet_jax.datasets.choices import NO_CHOICES, Choices
from scratchdet_jax.datasets.folder_builder import FolderBuilder, check_name, prepare_dataset
from scratchdet_jax.datasets.inventory import describe_files
from scratchdet_jax.datasets.report import PrepareReport
from scratchdet_jax.datasets.untrusted import as_user_errors
from scratchdet_jax.datasets.voc_scan import fingerprint, list_folder, scan
from scratchdet_jax.errors import UserError


class VocFolder(FolderBuilder):
    """A folder in VOC layout; features named as in TFDS's voc."""

    VERSION = tfds.core.Version("2.0.0")  # 2: in list order, with image/orientation

    def _id_feature(self) -> Any:
        return tfds.features.Text()

    def _object_features(self) -> dict[str, Any]:
        return {"is_difficult": np.bool_, "is_truncated": np.bool_}


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
    """Prepares a folder as the data set `voc_folder/<name>` unless it exists; prints a report.

    Every image is decoded completely and every box checked. Unusable data are left out, counted
    and named; the rest is used. Images are stored byte for byte; boxes refer to them as displayed,
    after the turn in image/orientation. Boxes follow TFDS's voc: xmin / width, without −1. The
    data set appears under its name only when it is complete; its directory also contains
    report.json. Nothing outside `folder` is read, unless `images` or `annotations` names a link
    to it.

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

    Returns:
        The report, read back if the data set existed.

    Raises:
        UserError: the folder is not in a known layout, the class names are invalid, or an error of
            `prepare_dataset`.
    """
    check_name(name)
    if class_names is not None and (
        not class_names or "" in class_names or len(set(class_names)) < len(class_names)
    ):
        raise UserError(f"the class names {list(class_names)} are empty or repeated")
    choices = choices._replace(classes=None)
    choices.check()
    read_as = choices.names_before_renaming(class_names)
    with as_user_errors(str(folder)):
        listing = list_folder(Path(folder), splits, images, annotations)
        identity = fingerprint(listing, class_names, splits)
    return prepare_dataset(
        VocFolder,
        name,
        data_dir,
        str(listing.layout.folder),
        identity,
        lambda journal: scan(listing, read_as, journal),
        strict,
        inventory=lambda: describe_files(
            listing.layout.folder,
            listing.files.annotations.values(),
            listing.files.images.values(),
            {f"list {name}": ids for name, ids in listing.lists.lines.items()},
            listing.layout.annotations.root,
        ),
        choices=choices,
        force=force,
    )
