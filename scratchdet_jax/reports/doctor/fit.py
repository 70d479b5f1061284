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
_ROWS = 256  # boxes compared at a time


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
        image: int64 [K], ascending: the image of each box.
        sizes: int32 [N, 2], height and width in pixels.
    """

    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    image: np.ndarray
    sizes: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Returns the number of boxes of each image, int64 [N]."""
        return np.bincount(self.image, minlength=len(self.sizes))

    @property
    def starts(self) -> np.ndarray:
        """Returns the index of each image's first box, int64 [N]."""
        return np.cumsum(self.counts) - self.counts

    @property
    def only_ignored(self) -> np.ndarray:
        """Returns whether an image has boxes and all are ignored, bool [N]."""
        ignored = np.bincount(self.image[self.ignore], minlength=len(self.sizes))
        return (ignored == self.counts) & (ignored > 0)

    def of_images(self, chosen: np.ndarray) -> tuple["BoxTable", np.ndarray]:
        """Returns the table of images, given in ascending order, and its boxes' indices here."""
        index = np.flatnonzero(np.isin(self.image, chosen))
        boxes, labels, ignore, image = (column[index] for column in self[:4])
        image = np.searchsorted(chosen, image)
        return BoxTable(boxes, labels, ignore, image, self.sizes[chosen]), index


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


def fit_boxes(
    levels: Levels, table: BoxTable, config: ml_collections.ConfigDict, draw: int | None = None
) -> Fit:
    """Fits the anchors to the boxes that training would use.

    Ignored boxes are fitted only if the config trains on them. `draw` is None for the boxes as
    annotated, else what augmentation leaves of them: draw d of image i is that of a training run
    with the config's seed at step d and position i.
    """
    boxes, best = np.zeros((0, 4), np.float32), np.zeros((0, len(levels.ends)), np.float32)
    none = np.zeros(0, np.int32)
    parts: list[tuple[np.ndarray, ...]] = [(boxes, none, none.astype(np.int64), best, none, none)]
    title = "anchors" if draw is None else f"augmented, draw {draw + 1}"
    options = augment_options(config)
    for rows, slots in _chunks(table, len(levels.anchors), title):
        real, index, rows = slots >= 0, np.maximum(slots, 0), np.maximum(rows, 0)
        chunk: tuple[Any, ...] = (
            np.where(real[..., None], table.boxes[index], 0),
            np.where(real, table.labels[index], 0),
            table.ignore[index] & real,
        )
        if draw is not None:
            keys = example_keys(config.seed, draw, jnp.asarray(rows))
            chunk = _augment_boxes(options, levels.image_size, keys, table.sizes[rows], *chunk)
        boxes, labels, ignore = map(np.asarray, chunk)
        if not config.data.train_on_ignored:
            labels = np.where(ignore, 0, labels)
        found = _fit(levels.anchors, levels.ends, boxes, labels, config.loss.match_iou)
        columns = (boxes, labels, slots, *map(np.asarray, found))
        parts.append(tuple(column[labels > 0] for column in columns))
    fit = Fit(*map(np.concatenate, zip(*parts, strict=True)))
    return fit if draw is not None else Fit(*(values[np.argsort(fit.source)] for values in fit))


def _chunks(
    table: BoxTable, anchor_count: int, title: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Returns images [B] and their boxes' indices [B, M], −1 where padded.

    M is a power of two, at least 4, and B depends on M alone, so few shapes occur.
    """
    counts, starts = table.counts, table.starts
    widths = 2 ** np.ceil(np.log2(np.maximum(counts, 4))).astype(int) * (counts > 0)
    with Progress(int((counts > 0).sum()), title, "image") as progress:
        for width in np.unique(widths[widths > 0]):
            images = np.flatnonzero(widths == width)
            size = max(1, _OVERLAPS_AT_A_TIME // (anchor_count * width))
            padded = np.pad(images, (0, -len(images) % size), constant_values=-1)
            for rows in padded.reshape(-1, size):
                column = np.arange(width)
                real = (rows >= 0)[:, None] & (column < counts[rows][:, None])
                yield rows, np.where(real, starts[rows][:, None] + column, -1)
                progress.update(units=int((rows >= 0).sum()))


@jax.jit
def best_iou(anchors: jax.Array, boxes: jax.Array) -> jax.Array:
    """Returns the best IoU of each box [K, 4] with any anchor, float32 [K]."""

    def one(box: jax.Array) -> jax.Array:
        return jnp.max(box_ops.iou(box[None], anchors))

    return jax.lax.map(one, boxes, batch_size=_ROWS)


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


@functools.partial(jax.jit, static_argnums=(0, 1))
def _augment_boxes(
    options: AugmentOptions, image_size: int, keys: jax.Array, *examples: jax.Array
) -> tuple[jax.Array, ...]:
    """Returns boxes, labels and ignore after training's augmentation of sizes and the same.

    Box positions do not depend on pixels, so a dummy image is used; XLA removes its resampling.
    """
    pixel = jnp.zeros((1, 1, 3), jnp.uint8)
    one = functools.partial(augment, options=options, image_size=image_size)
    return jax.vmap(one, (0, None, 0, 0, 0, 0))(keys, pixel, *examples)[1:]
