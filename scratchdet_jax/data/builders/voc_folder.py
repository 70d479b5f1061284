"""Any folder in VOC layout → a prepared TFDS data set, with a report of every defect.

The layout: JPEGImages/ID.jpg (or another image format), Annotations/ID.xml, and lists of ids in
ImageSets/Main/SPLIT.txt.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from scratchdet_jax.data.builders.files import as_user_errors
from scratchdet_jax.data.builders.folder_builder import FolderBuilder, check_name, prepare
from scratchdet_jax.data.builders.report import PrepareReport
from scratchdet_jax.data.builders.voc_scan import fingerprint, list_folder, scan
from scratchdet_jax.errors import UserError


class VocFolder(FolderBuilder):
    """A folder in VOC layout; features named as in TFDS's voc."""

    VERSION = tfds.core.Version("2.0.0")  # 2: in the order of the lists, with image/orientation

    def _id_feature(self) -> Any:
        return tfds.features.Text()

    def _object_features(self) -> dict[str, Any]:
        return {"is_difficult": np.bool_, "is_truncated": np.bool_}


def dataset_name(folder: str | Path) -> str:
    """The data set's name when the user gives none: the folder's, VOCdevkit/VOC2007 → voc2007."""
    name = re.sub(r"[^\w.+-]+", "_", Path(folder).resolve().name.lower()).strip("._+-")
    return name or "folder"


def prepare_voc_folder(
    folder: str | Path,
    data_dir: str | Path,
    name: str,
    class_names: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    strict: bool = False,
) -> PrepareReport:
    """Prepares a folder as the data set `voc_folder/<name>` unless it is there; prints a report.

    Every image is decoded, whole, and every box checked. What cannot be used is left out, counted
    and named, and the rest is used. Images are stored byte for byte; boxes refer to them as
    displayed, after the turn in image/orientation. Boxes follow TFDS's voc: xmin / width, with no
    −1. The data set appears under its name only when it is complete; its directory also holds
    report.json. Nothing outside `folder` is read.

    Args:
        folder: with JPEGImages, Annotations and, unless all images are for training,
            ImageSets/Main/<split>.txt.
        data_dir: TFDS's data_dir.
        name: of the data set.
        class_names: in the order of their labels, other classes being left out; None: those found,
            sorted, or VOC's twenty in VOC's order where no other is found.
        splits: those wanted; None: one for every plain list of ids in ImageSets/Main.
        strict: any defect is an error, and nothing is written.

    Returns:
        The report, read back where the data set is there already.

    Raises:
        UserError: the folder is not in VOC layout, nothing in it can be used, or `name` is taken
            by other data; and as `preparing.prepare`.
    """
    check_name(name)
    if class_names is not None and (
        not class_names or "" in class_names or len(set(class_names)) < len(class_names)
    ):
        raise UserError(f"the class names {list(class_names)} are empty or repeated")
    with as_user_errors(str(folder)):
        files = list_folder(Path(folder), splits)
        identity = fingerprint(files, class_names, splits)
    return prepare(
        VocFolder,
        name,
        data_dir,
        str(files.root),
        identity,
        lambda journal: scan(files, class_names, journal),
        strict,
    )
