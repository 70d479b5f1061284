"""A YOLO data.yaml with its images and text labels → a prepared TFDS data set and a report."""

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from scratchdet_jax.datasets.choices import NO_CHOICES, Choices, check_names
from scratchdet_jax.datasets.folder_builder import FolderBuilder, FolderInput, prepare_dataset
from scratchdet_jax.datasets.report import PrepareReport
from scratchdet_jax.datasets.yolo_data import list_yolo
from scratchdet_jax.datasets.yolo_scan import fingerprint, scan


class YoloFolder(FolderBuilder):
    """YOLO text labels, which have no flags; image/id is the path without its suffix."""

    VERSION = tfds.core.Version("1.0.0")

    id_feature = tfds.features.Text()
    object_features: ClassVar = {}


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

    Args:
        data: data.yaml as Ultralytics defines it: train, val and test are folders, lists of folders
            or .txt files that list images; names and nc; path.
        data_dir: TFDS's data_dir.
        name: name of the data set.
        folder: stands for `path` in `data`; None: its `path`, or the folder that `data` is in.
            Nothing outside is read.
        strict: treat any defect as an error and write nothing.
        choices: classes to rename, to keep or to drop, and a division.
        force: prepare it again if it exists, and replace it.

    Raises:
        UserError: a file or folder is missing, `data` is not a YOLO data file, no image has a label
            file, or an error of `prepare_dataset`.
    """

    def read() -> FolderInput:
        listing = list_yolo(Path(data), None if folder is None else Path(folder))
        check_names(choices, listing.class_names, str(data))
        return FolderInput(str(data), fingerprint(listing), lambda: scan(listing))

    return prepare_dataset(str(data), read, YoloFolder, name, data_dir, choices, strict, force)
