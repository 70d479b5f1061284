"""What VOC and COCO folders have in common: from checked images to a TFDS data set and a report."""

import abc
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import shard_utils
from tqdm import tqdm

from scratchdet_jax.data.builders.checks import Journal
from scratchdet_jax.data.builders.files import as_user_errors, printable, read_inside, stamp_inside
from scratchdet_jax.data.builders.objects import PreparedImage
from scratchdet_jax.data.builders.report import PrepareReport
from scratchdet_jax.data.builders.writing import write_dataset
from scratchdet_jax.errors import UserError, writable_folder


class Contents(NamedTuple):
    """What goes into the data set: the usable images by split, in the order of their list.

    `roots` are the resolved folders that hold the images, by split.
    """

    splits: Mapping[str, Sequence[PreparedImage]]
    roots: Mapping[str, Path]


class FolderBuilder(tfds.core.ShardBasedBuilder):
    """Writes checked images as they are, in order; at most one shard is held in memory.

    (TFDS's GeneratorBasedBuilder shuffles by itself, which takes TensorFlow above 1 GB.)
    """

    # Nothing is downloaded. (TFDS's own search for checksums of downloads imports
    # importlib_resources, which neither TFDS nor etils installs.)
    url_infos = None

    def __init__(self, data_dir: str | Path, contents: Contents, report: PrepareReport) -> None:
        """`report` gives the name and the classes and is stored beside the data."""
        self._contents, self._report = contents, report
        name = report.name.rpartition("/")[2]
        config = tfds.core.BuilderConfig(name=name, description=report.source)
        super().__init__(data_dir=str(data_dir), config=config)

    @abc.abstractmethod
    def _id_feature(self) -> Any:
        """The TFDS feature of image/id."""

    @abc.abstractmethod
    def _object_features(self) -> dict[str, Any]:
        """The TFDS features of an object, besides its label and its box."""

    def _info(self) -> tfds.core.DatasetInfo:
        names = list(self._report.class_names)
        features = {
            "image": tfds.features.Image(),
            "image/filename": tfds.features.Text(),
            "image/id": self._id_feature(),
            "image/orientation": np.int32,
            "objects": tfds.features.Sequence(
                {
                    "label": tfds.features.ClassLabel(names=names),
                    "bbox": tfds.features.BBoxFeature(),
                    **self._object_features(),
                }
            ),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Prepared from {self._report.source}.",
            features=tfds.features.FeaturesDict(features),
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable]]:
        # TFDS renames the directory into place at the end: data and report appear together.
        (self.data_path / "report.json").write_text(self._report.to_json(), encoding="utf-8")
        return {split: self._shards(split) for split in self._contents.splits}

    def _shards(self, split: str) -> list[Callable[[], Iterator]]:
        images = self._contents.splits[split]
        size = sum(image.stamp.size for image in images)
        count = shard_utils.ShardConfig.calculate_number_shards(size, len(images))
        ends = shard_utils.get_shard_boundaries(len(images), count)
        progress = tqdm(total=len(images), desc=f"writing {split}", unit="image", disable=None)
        return [
            functools.partial(self._generate, split, images[start:end], progress)
            for start, end in zip([0, *ends], ends, strict=False)
        ]

    def _generate(
        self, split: str, images: Sequence[PreparedImage], progress: tqdm
    ) -> Iterator[tuple[str | int, dict[str, Any]]]:
        labels = {name: i for i, name in enumerate(self._report.class_names)}
        for image in images:
            objects = [
                {
                    **item._asdict(),
                    "label": labels[item.name],
                    "bbox": tfds.features.BBox(*item.box),
                }
                for item in image.objects
            ]
            for fields in objects:
                del fields["name"], fields["box"]
            yield (
                image.image_id,
                {
                    "image": _read_unchanged(image, self._contents.roots[split]),
                    "image/filename": image.filename,
                    "image/id": image.image_id,
                    "image/orientation": image.orientation,
                    "objects": objects,
                },
            )
            progress.update()
            if progress.n == progress.total:
                progress.close()


def prepare(
    builder: type[FolderBuilder],
    name: str,
    data_dir: str | Path,
    source: str,
    fingerprint: str,
    scan: Callable[[Journal], tuple[Contents, PrepareReport]],
    strict: bool,
) -> PrepareReport:
    """Prepares `<builder>/<name>` unless it is there, and prints the report.

    Args:
        builder: of the data set.
        name: of the data set; see check_name.
        data_dir: TFDS's data_dir.
        source: what is prepared, in messages.
        fingerprint: of the input's contents and of the choices made.
        scan: checks the input; its report lacks name, source, directory and fingerprint.
        strict: any defect is an error, and nothing is written.

    Returns:
        The report, read back where the data set is there already.

    Raises:
        UserError: nothing can be used, something is wrong and `strict`, `name` is taken by other
            data, a file changed meanwhile, or the data folder cannot be written.
    """
    directory = Path(data_dir) / builder.name / name / str(builder.VERSION)
    if directory.exists():
        report = _stored_report(directory, source, fingerprint)
        print(_reuse_message(report), flush=True)
        _refuse_defects(report, strict, "it was prepared with them")
        return report
    writable_folder(Path(data_dir), "the data folder")
    journal_file = Path(data_dir) / f".preparing.{builder.name}.{name}.jsonl"
    with as_user_errors(source), Journal(journal_file) as journal:
        contents, report = scan(journal)
        report.name, report.source = f"{builder.name}/{name}", printable(source)
        report.directory, report.fingerprint = printable(str(directory)), fingerprint
        allowed = not (strict and report.defects)
        if allowed:
            write_dataset(lambda: builder(data_dir, contents, report))
            journal.remove()
    print(report.summary(stored=allowed), flush=True)
    _refuse_defects(report, strict, "nothing was written")
    return _stored_report(directory, source, fingerprint)  # another process may have been faster


def check_name(name: str) -> None:
    """Raises a UserError unless the text can name a data set."""
    if not re.fullmatch(r"\w[\w.+-]*", name) or re.fullmatch(r"\d+\.\d+\.\d+", name):
        raise UserError(f"{name!r} cannot name a data set: use letters, digits, and _ . + - inside")


def refuse_empty(source: str, contents: Contents, report: PrepareReport) -> None:
    """Raises a UserError if there is no image or no box at all."""
    if contents.splits and sum(report.boxes.values()):
        return
    what = "box" if contents.splits else "image"
    causes = ", ".join(f"{count} × {kind}" for kind, count in report.counts().items())
    first = report.defects[0] if report.defects else None
    example = f"; the first: {first.file}: {first.reason}" if first else ""
    raise UserError(f"{source} holds no usable {what}: {causes or 'it is empty'}{example}")


def _read_unchanged(image: PreparedImage, root: Path) -> bytes:
    """The image's bytes, if they are still those that were checked."""
    try:
        data = read_inside(image.path, root, image.stamp.size)
        if stamp_inside(image.path, root, image.stamp.size) == image.stamp:
            return data
        reason = "its size or time differs"
    except ValueError as error:
        reason = str(error)
    raise UserError(
        f"{image.path} changed after it was checked ({reason}): run the same command again"
    )


def _stored_report(directory: Path, source: str, fingerprint: str) -> PrepareReport:
    """The report of a prepared data set, if that was made of the same files and choices."""
    try:
        report = PrepareReport.from_json((directory / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{directory} holds no readable report.json ({error}): delete it to prepare {source}"
        ) from None
    if report.fingerprint != fingerprint:
        raise UserError(
            f"{report.name} in {directory} was prepared from {report.source} with other files, "
            f"classes or splits than {source} has now: delete that directory to prepare it again, "
            "or choose another name"
        )
    return report


def _reuse_message(report: PrepareReport) -> str:
    splits = ", ".join(f"{split} {count} images" for split, count in report.images.items())
    return (
        f"{report.name}: prepared already in {report.directory} ({splits}; "
        f"{len(report.defects)} defects, see report.json)"
    )


def _refuse_defects(report: PrepareReport, strict: bool, consequence: str) -> None:
    if strict and report.defects:
        raise UserError(
            f"{report.source} has {len(report.defects)} defects, which --strict does not allow: "
            f"{consequence}"
        )
