"""Fits a recipe's anchors to the ground truth, before and after augmentation.

The boxes of all images form one table. They are padded by the number of boxes in an image, which
bounds memory and compiles only a few shapes.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from scratchdet_jax.detector import augment_options
from scratchdet_jax.models.ssd import build_model, feature_sizes
from scratchdet_jax.ops import boxes as box_ops
from scratchdet_jax.ops.anchors import (
    AnchorSpecification,
    anchors_per_cell,
    make_anchors,
    sizes_in_pixels,
)
from scratchdet_jax.ops.augment import AugmentOptions, augment
from scratchdet_jax.ops.matching import match
from scratchdet_jax.progress import Progress
from scratchdet_jax.training.step import example_keys

_OVERLAPS_AT_A_TIME = 2_000_000  # IoU values per chunk, 8 MB; the largest image may need more


class Levels(NamedTuple):
    """The anchors of a recipe, level by level.

    Attributes:
        anchors: float32 [A, 4], normalised, not clipped.
        ends: for each level, the index after its last anchor.
        sizes: (min, max) size in pixels of the network input.
        maps: (height, width) of the feature map.
        ratios: width over height in addition to 1, each also inverted.
        image_size: side S of the network input.
    """

    anchors: np.ndarray
    ends: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    maps: tuple[tuple[int, int], ...]
    ratios: tuple[tuple[float, ...], ...]
    image_size: int

    @property
    def smallest(self) -> int:
        """Returns the side of the smallest square anchor in pixels."""
        return self.sizes[0][0]

    @property
    def cell(self) -> float:
        """Returns the side of a cell of the finest feature map in pixels of the network input."""
        return self.image_size / max(self.maps[0])


class BoxTable(NamedTuple):
    """The boxes of N images in one table.

    Attributes:
        boxes: float32 [K, 4], normalised.
        labels: int32 [K], 1…C.
        ignore: bool [K], difficult or crowd.
        starts: int64 [N + 1]; image i owns boxes starts[i] … starts[i + 1] − 1.
        sizes: int32 [N, 2], height and width in pixels on the canvas.
    """

    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Returns the number of boxes of each image, int64 [N]."""
        return np.diff(self.starts)

    @property
    def image(self) -> np.ndarray:
        """Returns the image of each box, int64 [K]."""
        return np.repeat(np.arange(len(self.sizes)), self.counts)

    @property
    def only_ignored(self) -> np.ndarray:
        """Returns whether an image has boxes and all are ignored, bool [N]."""
        ignored = np.bincount(self.image[self.ignore], minlength=len(self.sizes))
        return (ignored == self.counts) & (ignored > 0)

    def select(self, index: np.ndarray, counts: np.ndarray, sizes: np.ndarray) -> "BoxTable":
        """Returns the boxes `index` as a table whose images have `counts` boxes and `sizes`."""
        starts = np.concatenate([[0], np.cumsum(counts)])
        return BoxTable(self.boxes[index], self.labels[index], self.ignore[index], starts, sizes)


class Fit(NamedTuple):
    """How well the anchors fit K boxes.

    Attributes:
        boxes: float32 [K, 4], as the anchors see them.
        labels: int32 [K].
        source: int64 [K], index in the table.
        best: float32 [K, L], the best IoU with an anchor of each level.
        positives: int32 [K], anchors matched to the box (SSD's matching).
        reaching: int32 [K], how many of those reach the recipe's IoU; 0 means the box is trained
            only by the bipartite match.
    """

    boxes: np.ndarray
    labels: np.ndarray
    source: np.ndarray
    best: np.ndarray
    positives: np.ndarray
    reaching: np.ndarray

    def reached(self, threshold: float) -> np.ndarray:
        """Returns whether each box reaches an anchor of any level, bool [K]."""
        return self.best.max(axis=1) >= threshold


def share(values: np.ndarray) -> float:
    """Returns the mean, or NaN without values."""
    return float(np.mean(values)) if len(values) else float("nan")


def box_sides(boxes: np.ndarray, image_size: int) -> np.ndarray:
    """Returns the height and width [n, 2] in pixels of the network input."""
    return (boxes[:, 2:] - boxes[:, :2]) * image_size


def make_levels(config: ml_collections.ConfigDict, **changes: Any) -> Levels:
    """Returns the anchors of `config`; `changes` replace fields of `config.anchors`."""
    specification = AnchorSpecification(
        image_size=config.image_size, **(config.anchors.to_dict() | changes)
    )
    cells = anchors_per_cell(specification.aspect_ratios)
    maps = feature_sizes(build_model(config.model, 1, cells), config.image_size)
    counts = [height * width * n for (height, width), n in zip(maps, cells, strict=True)]
    return Levels(
        anchors=make_anchors(specification, maps),
        ends=tuple(np.cumsum(counts).tolist()),
        sizes=sizes_in_pixels(specification),
        maps=maps,
        ratios=specification.aspect_ratios,
        image_size=config.image_size,
    )


def fit_anchors(levels: Levels, table: BoxTable, threshold: float) -> Fit:
    """Fits the anchors to the boxes as annotated."""
    parts = [
        _fit_chunk(levels, threshold, slots, *_padded(table, slots)[:2])
        for _, slots in _chunks(table, len(levels.anchors), "anchors")
    ]
    fit = _join(levels, parts)
    order = np.argsort(fit.source)
    return Fit(*(values[order] for values in fit))


def fit_augmented(
    levels: Levels, table: BoxTable, config: ml_collections.ConfigDict, draws: int
) -> tuple[Fit, np.ndarray]:
    """Fits the anchors to the boxes that augmentation leaves, over several draws.

    Draw d of image i is that of a training run with the config's seed at step d and position i.
    All boxes guide the sampler; ignored ones are fitted only if the config trains on them.

    Returns:
        The fit of all boxes left in all draws, and int32 [draws, N]: boxes left in each image.
    """
    options, keep_ignored = augment_options(config), config.data.train_on_ignored
    parts, left = [], np.zeros((draws, len(table.sizes)), np.int32)
    for draw in range(draws):
        title = f"augmented, draw {draw + 1} of {draws}"
        for rows, slots in _chunks(table, len(levels.anchors), title):
            boxes, labels, ignore = _padded(table, slots)
            keys = example_keys(config.seed, draw, jnp.asarray(np.maximum(rows, 0)))
            sizes = jnp.asarray(table.sizes[np.maximum(rows, 0)])
            boxes, labels = _augment_boxes(
                keys, sizes, boxes, labels, ignore, options, levels.image_size, keep_ignored
            )
            parts.append(_fit_chunk(levels, config.loss.match_iou, slots, boxes, labels))
            real = rows >= 0
            left[draw, rows[real]] = (np.asarray(labels)[real] > 0).sum(axis=1)
    return _join(levels, parts), left


def _fit_chunk(
    levels: Levels, threshold: float, slots: np.ndarray, boxes: jax.Array, labels: jax.Array
) -> Fit:
    """Returns the fit of the boxes of a chunk that have a label."""
    found = _fit(jnp.asarray(levels.anchors), levels.ends, boxes, labels, threshold)
    kept = np.asarray(labels) > 0
    return Fit(*(np.asarray(values)[kept] for values in (boxes, labels, slots, *found)))


def _join(levels: Levels, parts: list[Fit]) -> Fit:
    boxes, best = np.zeros((0, 4), np.float32), np.zeros((0, len(levels.ends)), np.float32)
    none = np.zeros(0, np.int32)
    empty = Fit(boxes, none, none.astype(np.int64), best, none, none)
    return Fit(*(np.concatenate(values) for values in zip(empty, *parts, strict=True)))


def _chunks(
    table: BoxTable, anchor_count: int, title: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Returns images [B] and their boxes' indices [B, M], −1 where padded.

    M is a power of two, at least 4, and B depends on M alone, so few shapes occur.
    """
    counts = table.counts
    slots = np.where(counts > 0, np.maximum(2 ** np.ceil(np.log2(np.maximum(counts, 1))), 4), 0)
    with Progress(int((counts > 0).sum()), title, "image") as progress:
        for width in np.unique(slots[slots > 0]).astype(int):
            images = np.flatnonzero(slots == width)
            size = max(1, _OVERLAPS_AT_A_TIME // (anchor_count * width))
            for first in range(0, len(images), size):
                some = images[first : first + size]
                rows = np.full(size, -1)
                rows[: len(some)] = some
                column = np.arange(width)
                index = table.starts[some][:, None] + column
                boxes = np.full((size, width), -1)
                boxes[: len(some)] = np.where(column < counts[some][:, None], index, -1)
                yield rows, boxes
                progress.update(units=len(some))


def _padded(table: BoxTable, slots: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns boxes [B, M, 4], labels and ignore [B, M] of a chunk; zeros where padded."""
    real, index = slots >= 0, np.maximum(slots, 0)
    return (
        jnp.asarray(np.where(real[..., None], table.boxes[index], 0)),
        jnp.asarray(np.where(real, table.labels[index], 0)),
        jnp.asarray(table.ignore[index] & real),
    )


@functools.partial(jax.jit, static_argnums=1)
def _fit(
    anchors: jax.Array, ends: tuple[int, ...], boxes: jax.Array, labels: jax.Array, threshold: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the best IoU per level [B, M, L], and anchors matched and reaching the threshold."""

    def one(boxes: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        overlaps = box_ops.iou(boxes, anchors)
        starts = (0, *ends[:-1])
        best = [jnp.max(overlaps[:, a:b], axis=1) for a, b in zip(starts, ends, strict=True)]
        matched = match(anchors, boxes, labels, threshold).matched
        # A negative anchor updates the index past the end, which is dropped.
        own = jnp.where(matched < 0, len(labels), matched)
        overlap = jnp.take_along_axis(overlaps, jnp.maximum(matched, 0)[None], axis=0)[0]
        none = jnp.zeros(len(labels), jnp.int32)
        positives = none.at[own].add(1, mode="drop")
        reaching = none.at[own].add((overlap >= threshold).astype(jnp.int32), mode="drop")
        return jnp.stack(best, axis=1), positives, reaching

    return jax.vmap(one)(boxes, labels)


@functools.partial(jax.jit, static_argnums=(5, 6, 7))
def _augment_boxes(
    keys: jax.Array,
    sizes: jax.Array,
    boxes: jax.Array,
    labels: jax.Array,
    ignore: jax.Array,
    options: AugmentOptions,
    image_size: int,
    keep_ignored: bool,
) -> tuple[jax.Array, jax.Array]:
    """Returns boxes and labels after training's augmentation.

    Box positions do not depend on pixels, so a dummy image is used; XLA removes its resampling.
    """
    pixel = jnp.zeros((1, 1, 3), jnp.uint8)

    def one(
        key: jax.Array, size: jax.Array, boxes: jax.Array, labels: jax.Array, ignore: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        _, placed, labels, ignore = augment(
            key, pixel, size, boxes, labels, ignore, options, image_size
        )
        return placed, labels if keep_ignored else jnp.where(ignore, 0, labels)

    return jax.vmap(one)(keys, sizes, boxes, labels, ignore)
