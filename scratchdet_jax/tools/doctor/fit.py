"""How well a recipe's anchors fit the ground truth, before and after augmentation.

Boxes come as one table over all images and are padded by the number of boxes in an image, so that
memory is bounded and only a few shapes are compiled.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from tqdm import tqdm

from scratchdet_jax.models import build_model, feature_sizes
from scratchdet_jax.ops import boxes as box_ops
from scratchdet_jax.ops.anchors import (
    AnchorSpecification,
    anchors_per_cell,
    make_anchors,
    sizes_in_pixels,
)
from scratchdet_jax.ops.augment import AugmentOptions, augment
from scratchdet_jax.ops.matching import match
from scratchdet_jax.training.step import example_keys

_OVERLAPS_AT_A_TIME = 2_000_000  # IoU values of a chunk (the largest image may need more): 8 MB
_ROWS = 256  # boxes compared at a time where images do not matter


class Levels(NamedTuple):
    """The anchors of a recipe, level by level.

    Attributes:
        anchors: float32 [A, 4], normalised, not clipped.
        ends: for each level, the index after its last anchor.
        sizes: (min, max) size in pixels of the network input.
        maps: (height, width) of the feature map.
        ratios: width over height beside 1, each with its inverse.
        image_size: side S of the network input.
    """

    anchors: np.ndarray
    ends: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    maps: tuple[tuple[int, int], ...]
    ratios: tuple[tuple[float, ...], ...]
    image_size: int


class BoxTable(NamedTuple):
    """The boxes of N images, one after the other.

    Attributes:
        boxes: float32 [K, 4], normalised.
        labels: int32 [K], 1…C.
        ignore: bool [K], difficult or crowd.
        starts: int64 [N + 1]; image i has the boxes starts[i] … starts[i + 1] − 1.
        sizes: int32 [N, 2], height and width in pixels on the canvas.
    """

    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray


class Fit(NamedTuple):
    """How the anchors meet K boxes.

    Attributes:
        boxes: float32 [K, 4], as the anchors see them.
        labels: int32 [K].
        source: int64 [K], index in the table.
        best: float32 [K, L], the best IoU with an anchor of each level.
        positives: int32 [K], anchors trained towards the box (SSD's matching).
        reaching: int32 [K], how many of those reach the IoU of the recipe; where this is 0 the
            box is trained by the bipartite match alone.
    """

    boxes: np.ndarray
    labels: np.ndarray
    source: np.ndarray
    best: np.ndarray
    positives: np.ndarray
    reaching: np.ndarray


class FitSummary(NamedTuple):
    """Shares of the boxes, in [0, 1]; NaN where there is no box.

    Attributes:
        count: boxes.
        reached: whose best IoU over all levels reaches the threshold.
        reached_by_level: the same for each level's anchors alone, [L].
        home: whose best anchor, over all levels, lies on the level, [L].
        forced: trained by the bipartite match alone.
        untrained: no anchor at all is trained towards them.
        anchors_per_box: mean number of anchors trained towards a box.
        count_by_class: boxes of each class, [C].
        reached_by_class: over all levels, [C].
        reached_by_class_and_level: [C][L].
    """

    count: int
    reached: float
    reached_by_level: list[float]
    home: list[float]
    forced: float
    untrained: float
    anchors_per_box: float
    count_by_class: list[int]
    reached_by_class: list[float]
    reached_by_class_and_level: list[list[float]]


class WhatIf(NamedTuple):
    """Another set of anchor sizes, and the share of the boxes it reaches, plain and augmented."""

    min_percent: tuple[float, ...]
    max_percent: tuple[float, ...]
    reached: float
    reached_augmented: float


def make_levels(config: ml_collections.ConfigDict, **changes: tuple) -> Levels:
    """The anchors of `config`; `changes` replace fields of `config.anchors`."""
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


def fit_anchors(levels: Levels, table: BoxTable, threshold: float, title: str = "anchors") -> Fit:
    """Fits the anchors to the boxes as they are annotated."""
    count = len(table.labels)
    fit = Fit(
        table.boxes,
        table.labels,
        np.arange(count),
        np.zeros((count, len(levels.ends)), np.float32),
        np.zeros(count, np.int32),
        np.zeros(count, np.int32),
    )
    for _, slots in _chunks(table, len(levels.anchors), title):
        found = _fit(
            jnp.asarray(levels.anchors), levels.ends, *_padded(table, slots)[:2], threshold
        )
        real = slots >= 0
        for into, values in zip(fit[3:], found, strict=True):
            into[slots[real]] = np.asarray(values)[real]
    return fit


def fit_augmented(
    levels: Levels,
    table: BoxTable,
    threshold: float,
    options: AugmentOptions,
    *,
    seed: int,
    draws: int,
    keep_ignored: bool = True,
) -> tuple[Fit, np.ndarray]:
    """Fits the anchors to the boxes that augmentation leaves, over several draws.

    The draw d of image i is that of training for the seed, step d and position i.

    Args:
        levels: the anchors.
        table: the boxes; all of them guide the sampler, as in training.
        threshold: IoU from which an anchor is positive.
        options: of the augmentation.
        seed: of the run.
        draws: times that each image is augmented.
        keep_ignored: whether ignored boxes are trained on, and so measured.

    Returns:
        The fit of all boxes left in all draws, and int32 [draws, N]: boxes left in each image.
    """
    parts, left = [], np.zeros((draws, len(table.sizes)), np.int32)
    for draw in range(draws):
        title = f"augmented, draw {draw + 1} of {draws}"
        for rows, slots in _chunks(table, len(levels.anchors), title):
            boxes, labels, ignore = _padded(table, slots)
            keys = example_keys(seed, draw, jnp.asarray(np.maximum(rows, 0)))
            sizes = jnp.asarray(table.sizes[np.maximum(rows, 0)])
            boxes, labels = _augment_boxes(
                keys, sizes, boxes, labels, ignore, options, levels.image_size, keep_ignored
            )
            found = _fit(jnp.asarray(levels.anchors), levels.ends, boxes, labels, threshold)
            boxes, labels = np.asarray(boxes), np.asarray(labels)
            kept = labels > 0
            real = rows >= 0
            left[draw, rows[real]] = kept[real].sum(axis=1)
            parts.append(
                Fit(boxes[kept], labels[kept], slots[kept], *(np.asarray(v)[kept] for v in found))
            )
    if not parts:
        return fit_anchors(levels, table, threshold), left
    return Fit(*(np.concatenate(values) for values in zip(*parts, strict=True))), left


def summarize(fit: Fit, threshold: float, class_count: int) -> FitSummary:
    """Shares over all boxes, by level and by class."""
    reached = fit.best >= threshold
    overall = reached.any(axis=1)
    home = np.bincount(np.argmax(fit.best, axis=1), minlength=fit.best.shape[1])
    classes = [fit.labels == label for label in range(1, class_count + 1)]
    return FitSummary(
        count=len(fit.labels),
        reached=_mean(overall),
        reached_by_level=[_mean(column) for column in reached.T],
        home=[float(n) / len(fit.labels) if len(fit.labels) else np.nan for n in home],
        forced=_mean((fit.positives > 0) & (fit.reaching == 0)),
        untrained=_mean(fit.positives == 0),
        anchors_per_box=_mean(fit.positives),
        count_by_class=[int(own.sum()) for own in classes],
        reached_by_class=[_mean(overall[own]) for own in classes],
        reached_by_class_and_level=[[_mean(c) for c in reached[own].T] for own in classes],
    )


def what_if(
    config: ml_collections.ConfigDict,
    boxes: np.ndarray,
    augmented: np.ndarray,
    first_percents: tuple[float, ...],
) -> list[WhatIf]:
    """The share of boxes reached if the anchors began at other sizes, laid out by SSD's rule.

    SSD's rule: the first level has its own size p; the others rise evenly from 2·p to the last
    level's max size. At p = 10 these are the published sizes for VOC.

    Args:
        config: a run's config.
        boxes: float32 [K, 4].
        augmented: float32 [K', 4].
        first_percents: the sizes p to try; those that do not fit the recipe are passed over.
    """
    count, last = len(config.anchors.min_percent), config.anchors.max_percent[-1]
    outcomes = []
    for first in tqdm(first_percents, desc="other anchors", leave=False, disable=None):
        if count < 3 or first * config.image_size < 200 or 2 * first >= last:
            continue  # an anchor below two pixels, or no room above it
        rising = np.linspace(2 * first, last, count).round(1).tolist()
        sizes = {"min_percent": (first, *rising[:-1]), "max_percent": tuple(rising)}
        anchors = make_levels(config, **sizes).anchors
        shares = [
            _mean(_best_iou(anchors, some) >= config.loss.match_iou) for some in (boxes, augmented)
        ]
        outcomes.append(WhatIf(**sizes, reached=shares[0], reached_augmented=shares[1]))
    return outcomes


def _best_iou(anchors: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The best IoU of each box with any anchor, [K]."""
    best = np.zeros(len(boxes), np.float32)
    for first in range(0, len(boxes), _ROWS):
        some = np.zeros((_ROWS, 4), np.float32)
        rows = boxes[first : first + _ROWS]
        some[: len(rows)] = rows
        best[first : first + _ROWS] = _max_iou(anchors, some)[: len(rows)]
    return best


@jax.jit
def _max_iou(anchors: jax.Array, boxes: jax.Array) -> jax.Array:
    return jnp.max(box_ops.iou(boxes, anchors), axis=1)


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _chunks(
    table: BoxTable, anchor_count: int, title: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images [B] and their boxes' indices [B, M], −1 where padded.

    M is a power of two from 4 on and B depends on M alone, so few shapes occur.
    """
    counts = np.diff(table.starts)
    slots = np.where(counts > 0, np.maximum(2 ** np.ceil(np.log2(np.maximum(counts, 1))), 4), 0)
    with tqdm(
        total=int((counts > 0).sum()), desc=title, unit="image", leave=False, disable=None
    ) as bar:
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
                bar.update(len(some))


def _padded(table: BoxTable, slots: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Boxes [B, M, 4], labels and ignore [B, M] of a chunk; zeros where padded."""
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
    """Best IoU per level [B, M, L], and anchors matched, and of those reaching, [B, M]."""

    def one(boxes: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
        overlaps = box_ops.iou(boxes, anchors)
        starts = (0, *ends[:-1])
        best = [jnp.max(overlaps[:, a:b], axis=1) for a, b in zip(starts, ends, strict=True)]
        matched = match(anchors, boxes, labels, threshold).matched
        # Where an anchor is negative its update falls past the end, which drops it.
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
    """Boxes and labels after training's augmentation.

    No pixel decides where a box goes, so the image is left out: XLA removes its resampling.
    """
    pixel = jnp.zeros((1, 1, 3), jnp.uint8)

    def one(key: jax.Array, size: jax.Array, *boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, placed, labels, ignore = augment(key, pixel, size, *boxes, options, image_size)
        return placed, labels if keep_ignored else jnp.where(ignore, 0, labels)

    return jax.vmap(one)(keys, sizes, boxes, labels, ignore)
