"""Common to VOC and COCO folders: checked images → a TFDS data set and a report."""

import abc
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import shard_utils

from scratchdet_jax.data.builders.checks import Journal
from scratchdet_jax.data.builders.defects import Defect
from scratchdet_jax.data.builders.objects import UsableImage
from scratchdet_jax.data.builders.report import PrepareReport, statistics
from scratchdet_jax.data.builders.writing import write_dataset
from scratchdet_jax.data.untrusted import as_user_errors, printable, read_inside, stamp_inside
from scratchdet_jax.errors import UserError, one_line, plural, writable_folder
from scratchdet_jax.progress import Progress


class Contents(NamedTuple):
    """What a scan of the input found.

    Attributes:
        splits: the usable images by split, in the order of their list.
        roots: the resolved folder of the images, by split.
        class_names: in the order of the labels.
        category_ids: the COCO category id of each label; None for VOC.
        left_out: number of listed images that cannot be used, by split.
        notes: decisions made for the user.
        defects: everything that was left out or repaired.
    """

    splits: Mapping[str, Sequence[UsableImage]]
    roots: Mapping[str, Path]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...] | None
    left_out: dict[str, int]
    notes: list[str]
    defects: list[Defect]


class FolderBuilder(tfds.core.ShardBasedBuilder):
    """Writes checked images unchanged and in order, with at most one shard in memory.

    (TFDS's GeneratorBasedBuilder shuffles, which needs TensorFlow above 1 GB.)
    """

    # Nothing is downloaded. TFDS's search for checksums of downloads would import
    # importlib_resources, which neither TFDS nor etils installs.
    url_infos = None

    def __init__(self, data_dir: str | Path, contents: Contents, report: PrepareReport) -> None:
        """`report` gives the name and the classes and is stored with the data."""
        self._contents, self._report = contents, report
        name = report.name.rpartition("/")[2]
        config = tfds.core.BuilderConfig(name=name, description=report.source)
        super().__init__(data_dir=str(data_dir), config=config)

    @abc.abstractmethod
    def _id_feature(self) -> Any:
        """The TFDS feature of image/id."""

    @abc.abstractmethod
    def _object_features(self) -> dict[str, Any]:
        """The TFDS features of an object besides its label and its box."""

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
        progress = Progress(len(images), f"writing {split}", "image")
        return [
            functools.partial(self._generate, split, images[start:end], progress)
            for start, end in zip([0, *ends], ends, strict=False)
        ]

    def _generate(
        self, split: str, images: Sequence[UsableImage], progress: Progress
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


def prepare_dataset(
    builder: type[FolderBuilder],
    name: str,
    data_dir: str | Path,
    source: str,
    fingerprint: str,
    scan: Callable[[Journal], Contents],
    strict: bool,
) -> PrepareReport:
    """Prepares the data set `<builder>/<name>` unless it exists, and prints the report.

    Args:
        builder: the class that writes the data set.
        name: name of the data set; see `check_name`.
        data_dir: TFDS's data_dir.
        source: the input, for messages.
        fingerprint: hash of the input's contents and of the options.
        scan: reads and checks the input.
        strict: treat any defect as an error and write nothing.

    Returns:
        The report, read back if the data set existed.

    Raises:
        UserError: nothing is usable, there are defects and `strict` is set, `name` is taken by
            other data, a file changed meanwhile, or the data folder cannot be written.
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
        contents = scan(journal)
        report = PrepareReport(
            name=f"{builder.name}/{name}",
            source=printable(source),
            directory=printable(str(directory)),
            fingerprint=fingerprint,
            class_names=contents.class_names,
            category_ids=contents.category_ids,
            left_out=contents.left_out,
            notes=contents.notes,
            defects=contents.defects,
            **statistics(contents.splits, contents.class_names),
        )
        _refuse_empty(source, report)
        allowed = not (strict and report.defects)
        if allowed:
            write_dataset(lambda: builder(data_dir, contents, report))
            journal.remove()
    print(report.summary(stored=allowed), flush=True)
    _refuse_defects(report, strict, "nothing was written")
    return _stored_report(directory, source, fingerprint)  # another process may have been faster


def check_name(name: str) -> None:
    """Raises a UserError if the text cannot name a data set."""
    if not re.fullmatch(r"\w[\w.+-]*", name) or re.fullmatch(r"\d+\.\d+\.\d+", name):
        raise UserError(
            f"{name!r} cannot name a data set: use letters and digits, with _ . + - inside"
        )


def _refuse_empty(source: str, report: PrepareReport) -> None:
    """Raises a UserError if there is no usable image or no usable box."""
    if report.images and sum(report.boxes.values()):
        return
    what = "box" if report.images else "image"
    causes = ", ".join(f"{count} × {kind}" for kind, count in report.counts().items())
    first = report.defects[0] if report.defects else None
    example = f"; the first: {first.file}: {first.reason}" if first else ""
    raise UserError(f"{source} has no usable {what}: {causes or 'it is empty'}{example}")


def _read_unchanged(image: UsableImage, root: Path) -> bytes:
    """The image's bytes, if the file has not changed since it was checked."""
    try:
        data = read_inside(image.path, root, image.stamp.size)
        if stamp_inside(image.path, root, image.stamp.size) == image.stamp:
            return data
        reason = "its size or modification time differs"
    except ValueError as error:
        reason = str(error)
    raise UserError(
        f"{image.path} changed after it was checked ({reason}): run the same command again"
    )


def _stored_report(directory: Path, source: str, fingerprint: str) -> PrepareReport:
    """The report of an existing data set, if it was prepared from the same input and options."""
    try:
        report = PrepareReport.from_json((directory / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{directory} has no readable report.json ({one_line(error)}): delete the directory to "
            f"prepare {source}"
        ) from None
    if report.fingerprint != fingerprint:
        raise UserError(
            f"{report.name} in {directory} was prepared from {report.source}, whose files, classes "
            f"or splits differ from those of {source} now: delete that directory to prepare it "
            "again, or choose another name"
        )
    return report


def _reuse_message(report: PrepareReport) -> str:
    splits = ", ".join(
        f"{split} {plural(count, 'image')}" for split, count in report.images.items()
    )
    return (
        f"{report.name}: already prepared in {report.directory} ({splits}; "
        f"{plural(len(report.defects), 'defect')}, see report.json)"
    )


def _refuse_defects(report: PrepareReport, strict: bool, consequence: str) -> None:
    if strict and report.defects:
        raise UserError(
            f"{report.source} has {plural(len(report.defects), 'defect')}, which --strict does not "
            f"allow: {consequence}"
        )
