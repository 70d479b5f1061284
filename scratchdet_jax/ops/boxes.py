"""Box formats, overlap, and the encoding of boxes against anchors.

Boxes are float32 arrays [..., 4] of (ymin, xmin, ymax, xmax), normalised to [0, 1]. A name that
ends in `_cyxhw` means (centre y, centre x, height, width) instead.
"""

import jax
import jax.numpy as jnp
import numpy as np

VARIANCES = (0.1, 0.1, 0.2, 0.2)
"""SSD's variances: the offsets (cy, cx, h, w) are divided by them."""

_MIN_SIDE = 1e-6
"""Least side used in divisions and logarithms. One pixel's side is above 1e-5 in any image, so no
real box is changed."""

_MAX_LOG_SCALE = 20.0
"""A predicted side is at most e^20 times its anchor's: far beyond any image, but finite."""


def to_cyxhw(boxes: jax.Array | np.ndarray) -> jax.Array:
    """Converts corners to centre form.

    Args:
        boxes: [..., 4], (ymin, xmin, ymax, xmax).

    Returns:
        [..., 4], (centre y, centre x, height, width).
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def from_cyxhw(boxes_cyxhw: jax.Array) -> jax.Array:
    """Converts centre form to corners; the inverse of `to_cyxhw`.

    Args:
        boxes_cyxhw: [..., 4], (centre y, centre x, height, width).

    Returns:
        [..., 4], (ymin, xmin, ymax, xmax).
    """
    centre, half = boxes_cyxhw[..., :2], boxes_cyxhw[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def area(boxes: jax.Array) -> jax.Array:
    """Computes the area [...] of boxes [..., 4]; 0 if a box is empty or its corners are swapped."""
    height = jnp.maximum(boxes[..., 2] - boxes[..., 0], 0)
    width = jnp.maximum(boxes[..., 3] - boxes[..., 1], 0)
    return height * width


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes intersection over union of every pair (SSD's JaccardOverlap, normalised boxes).

    Args:
        a: boxes [N, 4].
        b: boxes [M, 4].

    Returns:
        [N, M] in [0, 1]. A pair with an empty, swapped or non-finite box has overlap 0, never NaN.
    """
    a, b = a[:, None], b[None, :]
    # Coordinate by coordinate: [N, M] terms fuse, and [N, M, 2] would waste a TPU's lanes.
    height = jnp.minimum(a[..., 2], b[..., 2]) - jnp.maximum(a[..., 0], b[..., 0])
    width = jnp.minimum(a[..., 3], b[..., 3]) - jnp.maximum(a[..., 1], b[..., 1])
    intersection = jnp.maximum(height, 0) * jnp.maximum(width, 0)
    union = area(a) + area(b) - intersection
    overlaps = (intersection > 0) & (union > 0) & jnp.isfinite(union)
    return jnp.where(overlaps, intersection / jnp.where(overlaps, union, 1), 0)


def encode(boxes: jax.Array, anchors: jax.Array) -> jax.Array:
    """Encodes boxes as offsets from anchors (SSD, CENTER_SIZE code).

    For a box g and an anchor a in centre form, the offsets are ((gy - ay) / ah, (gx - ax) / aw,
    ln(gh / ah), ln(gw / aw)), each divided by its entry of VARIANCES.

    Args:
        boxes: [..., 4] boxes.
        anchors: [..., 4], the anchor of each box.

    Returns:
        Offsets [..., 4] in the order (cy, cx, h, w); finite for all finite boxes, including empty
        and swapped ones, whose sides count as tiny.
    """
    box, anchor = to_cyxhw(boxes), to_cyxhw(anchors)
    box_sides = jnp.maximum(box[..., 2:], _MIN_SIDE)
    anchor_sides = jnp.maximum(anchor[..., 2:], _MIN_SIDE)
    centre = (box[..., :2] - anchor[..., :2]) / anchor_sides
    sides = jnp.log(box_sides / anchor_sides)
    return jnp.concatenate([centre, sides], axis=-1) / jnp.asarray(VARIANCES, box.dtype)


def decode(offsets: jax.Array, anchors: jax.Array | np.ndarray) -> jax.Array:
    """Decodes offsets into boxes; the inverse of `encode`.

    Args:
        offsets: [..., 4] in the order (cy, cx, h, w).
        anchors: [..., 4], the anchor of each offset.

    Returns:
        Boxes [..., 4], not clipped to the image; finite for finite offsets.
    """
    anchor = to_cyxhw(anchors)
    anchor_sides = jnp.maximum(anchor[..., 2:], _MIN_SIDE)
    scaled = offsets * jnp.asarray(VARIANCES, offsets.dtype)
    centre = anchor[..., :2] + scaled[..., :2] * anchor_sides
    sides = anchor_sides * jnp.exp(jnp.minimum(scaled[..., 2:], _MAX_LOG_SCALE))
    return from_cyxhw(jnp.concatenate([centre, sides], axis=-1))
