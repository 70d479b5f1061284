"""Cuts a window out of an image and resamples it, as two matrix products.

A separable resampling of an [H, W, 3] image to [S, T, 3] is `rows @ image @ columns.T` with a dense
[S, H] and a dense [T, W] weight matrix, which suits matrix units. The weights follow OpenCV's
`resize` (modules/imgproc/src/resize.cpp): half-pixel centres, taps clamped to the border of the
window, no antialiasing except for area. All positions are exact integer ratios.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

KERNELS = ("linear", "area", "nearest", "cubic", "lanczos")
"""Names of the kernels; elsewhere a kernel is its index in this tuple."""

_CUBIC_A = -0.75
_TAPS = (-3, -2, -1, 0, 1, 2, 3, 4)  # of the widest kernel, Lanczos with four lobes


class Window(NamedTuple):
    """A rectangle in pixels of the image; it may reach beyond the image. int32 scalars."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


def _linear(distance: jax.Array) -> jax.Array:
    return jnp.maximum(1.0 - jnp.abs(distance), 0.0)


def _cubic(distance: jax.Array) -> jax.Array:
    """Computes Keys' cubic convolution with OpenCV's a = −0.75."""
    d, a = jnp.abs(distance), _CUBIC_A
    near = ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
    far = ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a
    return jnp.where(d < 1.0, near, jnp.where(d < 2.0, far, 0.0))


def _lanczos(distance: jax.Array) -> jax.Array:
    """Weighs the eight taps of the last axis by Lanczos with four lobes; sums to 1 as in OpenCV."""
    weights = jnp.sinc(distance) * jnp.sinc(distance / 4.0)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def _interpolation_taps(
    kernel: jax.Array | int, out_size: int, length: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the base pixel int32 [S] and coefficients float32 [S, 8] at `_TAPS` around it.

    For `area` these are the weights that OpenCV uses when it does not shrink: linear interpolation
    with positions measured from pixel edges.
    """
    cell = jnp.arange(out_size)
    centre = (2 * cell + 1) * length - out_size  # in 1 / (2 S) of a source pixel
    centre_base = jnp.floor_divide(centre, 2 * out_size)
    centre_fraction = jnp.remainder(centre, 2 * out_size) / (2 * out_size)
    edge_base = (cell * length) // out_size
    edge_fraction = jnp.maximum((cell + 1) * length - (edge_base + 1) * out_size, 0) / length

    def taps(fraction: jax.Array) -> jax.Array:
        return jnp.asarray(_TAPS, jnp.float32) - fraction[:, None]

    central = taps(centre_fraction)
    coefficients = jnp.stack(  # in the order of KERNELS
        [
            _linear(central),
            _linear(taps(edge_fraction)),
            _linear(taps(jnp.zeros(out_size))),
            _cubic(central),
            _lanczos(central),
        ]
    )
    bases = jnp.stack([centre_base, edge_base, edge_base, centre_base, centre_base])
    return bases[kernel], coefficients[kernel]


def _area_weights(
    out_size: int, start: jax.Array, length: jax.Array, canvas_size: int
) -> jax.Array:
    """Computes each canvas pixel's share in each output cell of the window, [S, canvas_size]."""
    low = jnp.arange(out_size)[:, None] * length  # in 1 / S of a source pixel
    pixel = (jnp.arange(canvas_size)[None, :] - start) * out_size
    overlap = jnp.minimum(pixel + out_size, low + length) - jnp.maximum(pixel, low)
    return jnp.maximum(overlap, 0) / length


def axis_weights(
    kernel: jax.Array | int,
    out_size: int,
    start: jax.Array | int,
    length: jax.Array | int,
    valid: jax.Array | int,
    canvas_size: int,
    shrinks: jax.Array | bool,
) -> jax.Array:
    """Returns weights that resample a window of one axis.

    Args:
        kernel: index into `KERNELS`; may be traced.
        out_size: number S of output pixels.
        start: first pixel of the window; may be negative.
        length: pixels in the window (at least 1); it may reach beyond the image.
        valid: image pixels along the axis; pixels past them get weight 0.
        canvas_size: pixels of the padded canvas along the axis.
        shrinks: whether the window is at least as long as the result on **both** axes. Only then
            does OpenCV's INTER_AREA average; otherwise it interpolates linearly.

    Returns:
        float32 [S, canvas_size]. Taps outside the window are clamped to its border. A row sums to 1
        minus the weight outside the image.
    """
    start, length = jnp.asarray(start), jnp.maximum(length, 1)
    base, coefficients = _interpolation_taps(kernel, out_size, length)
    columns = jnp.arange(canvas_size)
    weights = jnp.zeros((out_size, canvas_size), jnp.float32)
    for k, offset in enumerate(_TAPS):
        source = start + jnp.clip(base + offset, 0, length - 1)
        weights += jnp.where(source[:, None] == columns, coefficients[:, k, None], 0.0)
    averages = shrinks & (jnp.asarray(kernel) == KERNELS.index("area"))
    weights = jnp.where(averages, _area_weights(out_size, start, length, canvas_size), weights)
    return jnp.where(columns < valid, weights, 0.0)


def resample(
    image: jax.Array,
    size: jax.Array,
    window: Window,
    kernel: jax.Array | int,
    image_size: int | tuple[int, int],
    fill: jax.Array,
) -> jax.Array:
    """Cuts a window out of an image on an infinite plane of colour `fill`, and resizes it.

    Equivalent to pasting the valid image on a canvas of that colour, cropping the window at whole
    pixels and calling `cv2.resize`. The colour is subtracted first, so that the plane is 0, and
    added back at the end. Padding (beyond `size`) has no effect.

    Args:
        image: float32 [H, W, 3] in 0…255.
        size: int32 [2], height and width of the valid part.
        window: what to cut.
        kernel: index into `KERNELS`.
        image_size: height S and width T of the result, or the side of a square.
        fill: float32 [3].

    Returns:
        float32 [S, T, 3], clipped to 0…255 (cubic and Lanczos overshoot; OpenCV saturates).
    """
    height, width = image.shape[:2]
    out_height, out_width = (image_size,) * 2 if isinstance(image_size, int) else image_size
    shrinks = (window.height >= out_height) & (window.width >= out_width)
    rows = axis_weights(kernel, out_height, window.top, window.height, size[0], height, shrinks)
    columns = axis_weights(kernel, out_width, window.left, window.width, size[1], width, shrinks)
    # HIGHEST, because by default TPUs and tensor cores round the pixels to bfloat16 or TF32.
    exact = jax.lax.Precision.HIGHEST
    middle = jnp.einsum("sh,hwc->swc", rows, image - fill, precision=exact)
    output = jnp.einsum("tw,swc->stc", columns, middle, precision=exact)
    return jnp.clip(output + fill, 0.0, 255.0)


def resize(image: jax.Array, size: jax.Array, image_size: int | tuple[int, int]) -> jax.Array:
    """Resizes the valid part of a padded image bilinearly, as evaluation does.

    Args:
        image: uint8 [H, W, 3], padded.
        size: int32 [2], height and width of the valid part.
        image_size: height S and width T of the result, or the side of a square.

    Returns:
        float32 [S, T, 3] in 0…255, equal to OpenCV's INTER_LINEAR before rounding.
    """
    zero = jnp.zeros((), jnp.int32)
    window = Window(zero, zero, size[0], size[1])
    return resample(
        image.astype(jnp.float32), size, window, KERNELS.index("linear"), image_size, jnp.zeros(3)
    )
