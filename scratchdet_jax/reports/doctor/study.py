"""The data set, read, decoded and fitted once; the input of every section."""

import collections
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import ml_collections
import numpy as np
import tensorflow_datasets as tfds

from scratchdet_jax.data import images
from scratchdet_jax.data.records import DetectionSource, Example, SpecPart, open_part, parse_spec
from scratchdet_jax.datasets.duplicates import Signature, read_signature
from scratchdet_jax.progress import map_ahead, track
from scratchdet_jax.reports.doctor.fit import BoxTable, Fit, box_sides, fit_boxes, make_levels
from scratchdet_jax.reports.page.tables import named

DRAWS = 4
"""Augmentations of each image."""

_AHEAD = 64  # records read ahead of their use


def open_dataset(
    dataset: str, data_dir: str, cache: str
) -> tuple[dict[str, DetectionSource], DetectionSource, dict[str, dict[str, Any]]]:
    """Opens all splits of `NAME[/CONFIG]`, or a spec as in `config.data.train`.

    Parts of a spec joined by + are separate splits. `cache`: `config.data.cache`.

    Returns:
        `splits`, `training` and `prepared` of the study.

    Raises:
        UserError: the data set or a split does not exist; see DetectionSource.
    """
    if ":" not in dataset:
        directory = _directory(SpecPart(dataset, "all", ""), data_dir, cache)
        known = tfds.builder_from_directory(directory).info.splits
        names = [name for name, info in known.items() if info.num_examples]
        splits = {name: DetectionSource(f"{dataset}:{name}", data_dir, cache) for name in names}
        return splits, splits.get("train", splits[names[0]]), _preparation(directory)
    training = DetectionSource(dataset, data_dir, cache)
    splits = {}
    prepared: dict[str, dict[str, Any]] = {}
    parts = parse_spec(dataset)
    several = len({(part.name, part.directory) for part in parts}) > 1
    for part in parts:
        at = f"@{part.directory}" if part.directory else ""
        for piece in map(str.strip, part.split.split("+")):
            spec = f"{part.name}:{piece}{at}"
            splits[spec if several else piece] = DetectionSource(spec, data_dir, cache)
        directory = _directory(part, data_dir, cache)
        prepared |= _preparation(directory)
    return splits, training, prepared


def _directory(part: SpecPart, data_dir: str, cache: str) -> Path:
    """Returns the directory of a data set's files."""
    return Path(open_part(part, data_dir, cache).shards[0].filename).parent


def _preparation(directory: Path) -> dict[str, dict[str, Any]]:
    """Returns what was skipped or repaired according to the builder's report.json, by kind."""
    kinds: dict[str, list[str]] = collections.defaultdict(list)
    try:
        report = json.loads((directory / "report.json").read_text(encoding="utf-8"))
        for defect in report["defects"]:
            kinds[defect["kind"]].append(f"{defect['file']}: {defect['reason']}")
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # not prepared by the builders of this package
    return {kind: named(texts) for kind, texts in kinds.items()}


class Look(NamedTuple):
    """One record without its image.

    `content` is a digest of the image's bytes; `size` (height, width) as displayed, 0 where the
    header cannot be read for the reason `problem`; `boxes`, `labels` and `ignore` are the usable
    boxes as in `Example`; `stored` the boxes and labels as stored, unchecked.
    """

    split: str
    position: int
    filename: str
    content: bytes
    size: tuple[int, int]
    turned: bool
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    stored: tuple[np.ndarray, np.ndarray]
    problem: str

    @property
    def place(self) -> str:
        """Returns SPLIT/FILE."""
        return f"{self.split}/{self.filename}"


class DataSetStudy:
    """A data set as a recipe sees it.

    An image that is in several splits (trainval, say) occurs several times among the records, but
    counts once: the distinct images and their boxes.

    Attributes:
        splits: by their name in the report.
        training: what training would read: the full spec, or the split "train", or the first split.
        prepared: defects found by the preparation, by kind; empty if it kept no report.
        looks: all records, split by split.
        records: the usable boxes of all records; its sizes are the images' own.
        images: int64 [n], indices of the distinct images in `looks`.
        table: boxes of the distinct images; its image i is `images[i]`.
        sides: float32 [k, 2], the distinct boxes' height and width in pixels of the network input.
        sizes: float32 [k], sqrt(height · width) of these.
        decoded: indices of the images that were decoded.
        signatures: by image, of those that can be decoded.
        broken: by image, why it cannot be decoded; images with an unreadable header included.
        levels: the anchors.
        before: the anchors' fit to the boxes of the decoded images; `source` is the index in
            `records`.
        after: the fit after augmentation.
        boxes_left: int [DRAWS, m], boxes that augmentation leaves of the m images that had some.
    """

    def __init__(
        self, dataset: str, data_dir: str, config: ml_collections.ConfigDict, most_images: int
    ) -> None:
        """Reads a data set and fits the anchors to it.

        At most `most_images` images are decoded and fitted; if there are more, they are drawn at
        random, the same ones in every run. `dataset`: see `open_dataset`.
        """
        self.dataset, self.config = dataset, config
        opened = open_dataset(dataset, data_dir, config.data.cache)
        self.splits, self.training, self.prepared = opened
        self.image_size, self.canvas = config.image_size, tuple(config.data.canvas)
        self.threshold = config.loss.match_iou
        self.levels = make_levels(config)

        splits = self.splits
        self.class_names = next(iter(splits.values())).class_names
        where = [(name, i) for name, source in splits.items() for i in range(len(source))]
        found = map_ahead(lambda at: _look(splits[at[0]], *at), where, _AHEAD)
        self.looks = list(track(found, len(where), "reading", "image"))
        self.records = _table(self.looks)
        self.images = chosen = distinct_images(self.looks)
        self.table, _ = self.records.of_images(self.images)
        self.sides = box_sides(self.table.boxes, self.image_size)
        self.sizes = np.sqrt(self.sides.prod(axis=1))

        if len(chosen) > most_images:
            chosen = np.sort(np.random.default_rng(0).choice(chosen, most_images, replace=False))
        self.decoded = chosen
        self.broken = {i: self.looks[i].problem for i in self.images.tolist()}
        self.broken = {i: problem for i, problem in self.broken.items() if problem}
        self.signatures: dict[int, Signature] = {}
        self._decode()
        self._fit()

    def _decode(self) -> None:
        """Decodes the chosen images completely."""
        cv2.setNumThreads(0)  # the threads below are enough

        def one(i: int) -> tuple[int, Signature | str]:
            example = self.example(i)
            try:
                images.check_complete(example["image"])
                return i, read_signature(example["image"], example["orientation"])
            except ValueError as error:
                return i, str(error)

        results = map_ahead(one, self.decoded.tolist(), _AHEAD)
        for i, found in track(results, len(self.decoded), "decoding", "image"):
            if isinstance(found, str):
                self.broken[i] = found
            else:
                self.signatures[i] = found

    def _fit(self) -> None:
        table, index = self.records.of_images(self.decoded)
        table = table._replace(sizes=size_on_canvas(table.sizes, self.canvas))
        before = fit_boxes(self.levels, table, self.config)
        self.before = before._replace(source=index[before.source])
        draws = [fit_boxes(self.levels, table, self.config, draw) for draw in range(DRAWS)]
        self.after = Fit(*map(np.concatenate, zip(*draws, strict=True)))
        left = [np.bincount(table.image[f.source], minlength=len(table.sizes)) for f in draws]
        self.boxes_left = np.array(left)[:, table.counts > 0]

    @property
    def most_boxes(self) -> int:
        """Returns the number of boxes of the most crowded record."""
        return int(self.records.counts.max(initial=0))

    def class_sizes(self, label: int) -> np.ndarray:
        """Returns the sizes of a class's distinct boxes."""
        return self.sizes[self.table.labels == label]

    def named(self, images: Iterable[int]) -> dict[str, Any]:
        """Returns the number and the first names of images."""
        return named([self.looks[i].place for i in images])

    def example(self, image: int) -> Example:
        """Returns the record of an image."""
        look = self.looks[image]
        return self.splits[look.split][look.position]


def distinct_images(looks: list[Look]) -> np.ndarray:
    """Returns int64 [n], ascending, one record for each pair of file name and bytes.

    It is that in the smallest split: train rather than trainval.
    """
    sizes = collections.Counter(look.split for look in looks)
    chosen: dict[tuple[str, bytes], int] = {}
    for i in sorted(range(len(looks)), key=lambda i: sizes[looks[i].split]):
        chosen.setdefault((looks[i].filename, looks[i].content), i)
    return np.array(sorted(chosen.values()), np.int64)


def size_on_canvas(sizes: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """Returns the sizes int [N, 2] after the loader's reduction to the canvas; never enlarged."""
    sizes = np.maximum(sizes, 1)
    scale = np.minimum(1.0, np.min(np.asarray(canvas) / sizes, axis=1, keepdims=True))
    return np.clip(np.round(sizes * scale), 1, canvas).astype(np.int32)


def _look(source: DetectionSource, split: str, index: int) -> Look:
    example = source[index]
    size, problem = (0, 0), ""
    try:
        header = images.read_header(example["image"])
        size = header._replace(orientation=example["orientation"]).displayed_size
    except ValueError as error:
        problem = str(error)
    return Look(
        split=split,
        position=index,
        filename=example["filename"],
        content=hashlib.blake2b(example["image"], digest_size=16).digest(),
        size=size,
        turned=example["orientation"] != 1,
        boxes=example["boxes"],
        labels=example["labels"],
        ignore=example["ignore"],
        stored=source.stored_objects(index),
        problem=problem,
    )


def _table(looks: list[Look]) -> BoxTable:
    return BoxTable(
        np.concatenate([np.zeros((0, 4), np.float32), *(look.boxes for look in looks)]),
        np.concatenate([np.zeros(0, np.int32), *(look.labels for look in looks)]),
        np.concatenate([np.zeros(0, bool), *(look.ignore for look in looks)]),
        np.repeat(np.arange(len(looks)), [len(look.labels) for look in looks]),
        np.array([look.size for look in looks], np.int32).reshape(-1, 2),
    )
