"""One pass over the records of a data set: what is kept about every image and box.

No image is decoded in it and none is kept; a second pass (`decode`) decodes some of them.
"""

import collections
import hashlib
import itertools
from typing import NamedTuple

import cv2
import numpy as np

from scratchdet_jax.data import images
from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.datasets.duplicates import Signature, read_signature
from scratchdet_jax.predictor import map_ahead
from scratchdet_jax.progress import track
from scratchdet_jax.reports.doctor.fit import BoxTable

_AHEAD = 64  # records read ahead of their use
_BEYOND = 1e-4
"""Tolerance outside the image, relative to its side: 0.05 pixel of 500."""


class Look(NamedTuple):
    """One record without its image.

    `content` is a digest of the image's bytes; `size` (height, width) as displayed, 0 where the
    header cannot be read for the reason `problem`; `boxes`, `labels` and `ignore` are the usable
    boxes as in `Example`; `defects` (kind, detail) those of the boxes as stored.
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
    defects: list[tuple[str, str]]
    problem: str

    @property
    def place(self) -> str:
        """Returns SPLIT/FILE."""
        return f"{self.split}/{self.filename}"


class Census(NamedTuple):
    """N records, split by split, and their K boxes.

    An image that is in several splits (trainval, say) occurs several times.

    Attributes:
        class_names: label i is class_names[i − 1].
        split_names: names of the splits.
        looks: the records.
        distinct: int64 [n], indices that stand for the n different images, one for each pair of
            file name and bytes.
        table: the usable boxes, as they are trained on; its sizes are the images' own.
    """

    class_names: tuple[str, ...]
    split_names: tuple[str, ...]
    looks: list[Look]
    distinct: np.ndarray
    table: BoxTable

    def contents(self) -> dict[str, set[bytes]]:
        """Returns the digests of each split's images."""
        found: dict[str, set[bytes]] = {name: set() for name in self.split_names}
        for look in self.looks:
            found[look.split].add(look.content)
        return found


def take_census(splits: dict[str, DetectionSource]) -> Census:
    """Reads every record of every split once."""
    where = [(name, i) for name, source in splits.items() for i in range(len(source))]
    found = map_ahead(lambda at: _look(splits[at[0]], *at), where, _AHEAD)
    looks = list(track(found, len(where), "reading", "image"))
    distinct = _distinct(
        [len(splits[look.split]) for look in looks],
        [(look.filename, look.content) for look in looks],
    )
    sources = list(splits.values())
    return Census(
        sources[0].class_names, tuple(splits), looks, np.flatnonzero(distinct), _table(looks)
    )


def decode(
    census: Census, splits: dict[str, DetectionSource], chosen: np.ndarray
) -> tuple[dict[int, Signature], dict[int, str]]:
    """Decodes the chosen images (indices in the census) completely.

    Returns:
        The signatures of those that can be decoded, and the reason for each other one.
    """
    cv2.setNumThreads(0)  # the threads below are enough

    def one(i: int) -> tuple[int, Signature | str]:
        example = splits[census.looks[i].split][census.looks[i].position]
        try:
            images.check_complete(example["image"])
            return i, read_signature(example["image"], example["orientation"])
        except ValueError as error:
            return i, str(error)

    results = map_ahead(one, chosen.tolist(), _AHEAD)
    found = dict(track(results, len(chosen), "decoding", "image"))
    broken = {i: reason for i, reason in found.items() if isinstance(reason, str)}
    return {i: s for i, s in found.items() if not isinstance(s, str)}, broken


def select_images(table: BoxTable, chosen: np.ndarray) -> tuple[BoxTable, np.ndarray]:
    """Returns the table of the chosen images, and its boxes' indices in the full table."""
    counts = table.counts[chosen]
    skipped = table.starts[chosen] - (np.cumsum(counts) - counts)
    index = np.repeat(skipped, counts) + np.arange(counts.sum())
    return table.select(index, counts, table.sizes[chosen]), index


def without_ignored(table: BoxTable) -> tuple[BoxTable, np.ndarray]:
    """Returns the table without ignored boxes, and its boxes' indices in the full table."""
    index = np.flatnonzero(~table.ignore)
    counts = np.bincount(table.image[index], minlength=len(table.sizes))
    return table.select(index, counts, table.sizes), index


def size_on_canvas(sizes: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """Returns the sizes int [N, 2] after the loader's reduction to the canvas; never enlarged."""
    sizes = np.maximum(sizes, 1)
    scale = np.minimum(1.0, np.min(np.asarray(canvas) / sizes, axis=1, keepdims=True))
    return np.clip(np.round(sizes * scale), 1, canvas).astype(np.int32)


def box_defects(boxes: np.ndarray, labels: np.ndarray) -> list[tuple[str, str]]:
    """Finds defects of the boxes of one image, as stored: (kind, detail).

    Args:
        boxes: float [n, 4], (ymin, xmin, ymax, xmax), normalised, unchecked.
        labels: int [n], 1…C; smaller values are no class.
    """
    found = []
    for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        ymin, xmin, ymax, xmax = box
        text = f"box {i + 1}: y {ymin:.4g}…{ymax:.4g}, x {xmin:.4g}…{xmax:.4g}"
        if not np.isfinite(box).all():
            found.append(("coordinates that are no numbers", text))
        elif ymin > ymax or xmin > xmax:
            found.append(("swapped corners", text))
        elif ymin == ymax or xmin == xmax:
            found.append(("no area", text))
        elif max(ymin, xmin) >= 1 or min(ymax, xmax) <= 0:
            found.append(("wholly outside the image", text))
        elif box.min() < -_BEYOND or box.max() > 1 + _BEYOND:
            found.append(("reaches out of the image", text))
        if label < 1:
            found.append(("no class", text))
    copies = collections.defaultdict(list)
    for i, box in enumerate(boxes):
        copies[tuple(box.tolist())].append(i)
    for same in copies.values():
        for a, b in itertools.pairwise(same):
            kind = "the same box twice" + ("" if labels[a] == labels[b] else ", of two classes")
            found.append((kind, f"boxes {a + 1} and {b + 1}"))
    return found


def _look(source: DetectionSource, split: str, index: int) -> Look:
    example = source[index]
    encoded, orientation = example["image"], example["orientation"]
    raw, labels = source.stored_objects(index)
    size, problem = (0, 0), ""
    try:
        size = images.read_header(encoded).size
    except ValueError as error:
        problem = str(error)
    if orientation >= 5:  # a quarter turn
        size = size[::-1]
    return Look(
        split=split,
        position=index,
        filename=example["filename"],
        content=hashlib.blake2b(encoded, digest_size=16).digest(),
        size=size,
        turned=orientation != 1,
        boxes=example["boxes"],
        labels=example["labels"],
        ignore=example["ignore"],
        defects=box_defects(raw, labels),
        problem=problem,
    )


def _distinct(split_sizes: list[int], identities: list[tuple[str, bytes]]) -> np.ndarray:
    """Marks one occurrence of each image: that in the smallest split, train rather than trainval.

    Args:
        split_sizes: [N], images in the split of each occurrence.
        identities: [N], file name and content.
    """
    chosen: dict[tuple[str, bytes], int] = {}
    for i in np.argsort(split_sizes, kind="stable").tolist():
        chosen.setdefault(identities[i], i)
    distinct = np.zeros(len(identities), bool)
    distinct[list(chosen.values())] = True
    return distinct


def _table(looks: list[Look]) -> BoxTable:
    return BoxTable(
        np.concatenate([np.zeros((0, 4), np.float32), *(look.boxes for look in looks)]),
        np.concatenate([np.zeros(0, np.int32), *(look.labels for look in looks)]),
        np.concatenate([np.zeros(0, bool), *(look.ignore for look in looks)]),
        np.cumsum([0, *(len(look.labels) for look in looks)]).astype(np.int64),
        np.array([look.size for look in looks], np.int32).reshape(-1, 2),
    )
