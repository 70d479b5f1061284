"""A YOLO data.yaml with its images and text labels → a prepared TFDS data set and a report."""

from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from scratchdet_jax.datasets.choices import NO_CHOICES, Choices, check_names
from scratchdet_jax.datasets.folder_builder import FolderBuilder, check_name, prepare_dataset
from scratchdet_jax.datasets.inventory import describe_files
from scratchdet_jax.datasets.report import PrepareReport
from scratchdet_jax.datasets.stored import FolderInput
from scratchdet_jax.datasets.untrusted import as_user_errors
from scratchdet_jax.datasets.yolo_data import YoloListing, list_yolo
from scratchdet_jax.datasets.yolo_scan import fingerprint, scan


class YoloFolder(FolderBuilder):
    """YOLO text labels, which have no flags; image/id is the path without its suffix."""

    VERSION = tfds.core.Version("1.0.0")

    def _id_feature(self) -> Any:
        return tfds.features.Text()

    def _object_features(self) -> dict[str, Any]:
        return {}


def prepare_yolo_folder(
    data: str | Path,
    data_dir: str | Path,
    name: str,
    folder: str | Path | None = None,
    strict: bool = False,
    choices: Choices = NO_CHOICES,
    force: bool = False,
) -> PrepareReport:
    """Prepares a YOLO data set as the data set `yolo_folder/<name>` unless it exists.

    Every image is decoded completely and every box checked. Unusable data are left out, counted
    and named; the rest is used. Images are stored byte for byte; boxes refer to them as displayed.
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

    Returns:
        The report, read back if the data set existed.

    Raises:
        UserError: a file or folder is missing, `data` is not a YOLO data file, no image has a label
            file, or an error of `prepare_dataset`.
    """
    check_name(name)
    choices.check()
    with as_user_errors(str(data)):
        listing = list_yolo(Path(data), None if folder is None else Path(folder))
        check_names(choices, listing.class_names, str(data))
        identity = fingerprint(listing)
    given = FolderInput(
        str(data),
        identity,
        lambda journal: scan(listing, journal),
        inventory=lambda: _inventory(listing),
    )
    return prepare_dataset(given, YoloFolder, name, data_dir, choices, strict, force)


def _inventory(listing: YoloListing) -> dict[str, str]:
    """Returns the versions of the class names, the splits, the label files and the images."""
    images = [image for members in listing.splits.values() for image in members]
    members = {f"split {split}": [i.name for i in m] for split, m in listing.splits.items()}
    return describe_files(
        listing.root,
        dict.fromkeys(image.label for image in images if image.label),
        dict.fromkeys(image.path for image in images),
        {"class names": listing.class_names, **members},
    )
