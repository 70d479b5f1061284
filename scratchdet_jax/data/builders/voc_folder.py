"""Any folder in VOC layout → a prepared TFDS data set, with a report of every defect.

The layout: JPEGImages/ID.jpg (or .jpeg, .png), Annotations/ID.xml, ImageSets/Main/SPLIT.txt.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from scratchdet_jax.data.builders.voc_report import Report
from scratchdet_jax.data.builders.voc_scan import Contents, Folder, fingerprint, list_folder, scan
from scratchdet_jax.data.builders.writing import write_dataset
from scratchdet_jax.errors import UserError

_VERSION = "1.0.0"


def dataset_name(folder: str | Path) -> str:
    """The data set's name when the user gives none: the folder's, VOCdevkit/VOC2007 → voc2007."""
    name = re.sub(r"[^\w.+-]+", "_", Path(folder).resolve().name.lower()).strip("._")
    return name or "folder"


def prepare_voc_folder(
    folder: str | Path,
    data_dir: str | Path,
    name: str,
    class_names: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
) -> Report:
    """Prepares a folder as the data set ``voc_folder/<name>`` unless it is there; prints a report.

    Every image is decoded, whole, and every box checked. What cannot be used is left out, counted
    and named, and the rest is used. Images are stored byte for byte. Boxes follow TFDS's voc:
    xmin / width, with no −1. The data set appears under its name only when it is complete; its
    directory also holds report.json.

    Args:
      folder: with JPEGImages, Annotations and, unless all images are for training,
        ImageSets/Main/<split>.txt.
      data_dir: TFDS's data_dir.
      name: of the data set.
      class_names: in the order of their labels, other classes being left out; None: those found,
        sorted, or VOC's twenty in VOC's order where no other is found.
      splits: those wanted; None: one for every plain list of ids in ImageSets/Main.

    Returns:
      The report, read back where the data set is there already.

    Raises:
      UserError: the folder is not in VOC layout, nothing in it can be used, or ``name`` is taken
        by other data.
    """
    if not re.fullmatch(r"\w[\w.+-]*", name) or re.fullmatch(r"\d+\.\d+\.\d+", name):
        raise UserError(f"{name!r} cannot name a data set: use letters, digits, and _ . + - inside")
    if class_names is not None and (
        not class_names or "" in class_names or len(set(class_names)) < len(class_names)
    ):
        raise UserError(f"the class names {list(class_names)} are empty or repeated")
    files = list_folder(Path(folder), splits)
    identity = fingerprint(files, class_names, splits)
    directory = Path(data_dir) / "voc_folder" / name / _VERSION
    if directory.exists():
        return _reuse(directory, files.path, name, identity)
    contents, report = scan(files, class_names)
    report.name, report.directory, report.fingerprint = name, str(directory), identity
    print(report.summary(), flush=True)
    write_dataset(lambda: VocFolder(data_dir, files, contents, report))
    return report


class VocFolder(tfds.core.GeneratorBasedBuilder):
    """Writes scanned contents as a TFDS data set whose features are named as in TFDS's voc."""

    VERSION = tfds.core.Version(_VERSION)
    # Nothing is downloaded. (TFDS's own search for checksums of downloads imports
    # importlib_resources, which neither TFDS nor etils installs.)
    url_infos = None

    def __init__(
        self, data_dir: str | Path, files: Folder, contents: Contents, report: Report
    ) -> None:
        """``report`` gives the name and the classes and is stored beside the data."""
        self._files, self._contents, self._report = files, contents, report
        config = tfds.core.BuilderConfig(name=report.name, description=report.folder)
        super().__init__(data_dir=str(data_dir), config=config)

    def _info(self) -> tfds.core.DatasetInfo:
        label = tfds.features.ClassLabel(names=self._report.class_names)
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Prepared from {self._report.folder}.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "image/filename": tfds.features.Text(),
                    "image/id": tfds.features.Text(),
                    "objects": tfds.features.Sequence(
                        {
                            "label": label,
                            "bbox": tfds.features.BBoxFeature(),
                            "is_difficult": np.bool_,
                            "is_truncated": np.bool_,
                        }
                    ),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        # TFDS renames the directory into place at the end: data and report appear together.
        (self.data_path / "report.json").write_text(self._report.to_json(), encoding="utf-8")
        return {split: self._generate_examples(ids) for split, ids in self._contents.splits.items()}

    def _generate_examples(self, ids: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        labels = {name: i for i, name in enumerate(self._report.class_names)}
        for image_id in ids:
            path = self._files.images[image_id]
            yield (
                image_id,
                {
                    "image": path.read_bytes(),
                    "image/filename": path.name,
                    "image/id": image_id,
                    "objects": [
                        {
                            "label": labels[o.name],
                            "bbox": tfds.features.BBox(*o.box),
                            "is_difficult": o.is_difficult,
                            "is_truncated": o.is_truncated,
                        }
                        for o in self._contents.objects[image_id]
                    ],
                },
            )


def _reuse(directory: Path, folder: Path, name: str, identity: str) -> Report:
    """The stored report, if the data set was made of the same files with the same choices."""
    try:
        report = Report.from_json((directory / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{directory} holds no readable report.json ({error}): delete it to prepare {folder}"
        ) from None
    if report.fingerprint != identity:
        raise UserError(
            f"voc_folder/{name} in {directory} was prepared from {report.folder} with other files, "
            f"classes or splits than {folder} has now: delete that directory to prepare it again, "
            "or choose another name"
        )
    count = len(report.defects)
    print(
        f"voc_folder/{name}: prepared already in {directory} ("
        + ", ".join(f"{split} {n} images" for split, n in report.images.items())
        + f"; {count} defects, see report.json)",
        flush=True,
    )
    return report
