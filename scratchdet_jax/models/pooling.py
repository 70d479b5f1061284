"""Max-pooling, plain and packed, with a gradient that goes to one value of each window."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from scratchdet_jax.models import packing
from scratchdet_jax.models.packing import Map


def max_pool_3x3(x: Map, stride: int) -> jax.Array:
    """Computes maxima of 3×3 windows, padded by 1: x [B, H, W, C] → [B, ⌈H/stride⌉, ⌈W/stride⌉, C].

    Takes maxima of shifted views, first over rows, then over columns, for the same reason as
    `max_pool_2x2`; equal maxima share their gradient.
    """
    x = packing.unpack(x)
    for axis in (1, 2):
        size = x.shape[axis]
        edges = [(0, 0)] * x.ndim
        edges[axis] = (1, 1)
        padded = jnp.pad(x, edges, constant_values=-jnp.inf)
        shifted = [
            jax.lax.slice_in_dim(padded, i, i + size, stride=stride, axis=axis) for i in range(3)
        ]
        x = jnp.maximum(jnp.maximum(shifted[0], shifted[1]), shifted[2])
    return x


def max_pool_2x2(x: Map, ceil: bool = False) -> Map:
    """Computes maxima of 2×2 windows, stride 2: x [B, H, W, C] → [B, ⌊H/2⌋, ⌊W/2⌋, C].

    The gradient goes to the first of equal maxima, as in PyTorch. As in PyTorch, the last row or
    column of an odd size is dropped; with `ceil`, as in Caffe, it forms extra windows.

    XLA's pooling is not used: its gradient is not deterministic on GPUs and rereads the whole map.
    """

    def pooled(x: jax.Array) -> jax.Array:
        if ceil:
            edges = ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0))
            x = jnp.pad(x, edges, constant_values=-jnp.inf)
        height, width = (size // 2 * 2 for size in x.shape[1:3])
        return _even_max_pool(x[:, :height, :width])

    return jax.tree.map(pooled, x)


_WINDOW = ((0, 0), (0, 1), (1, 0), (1, 1))  # row and column of each value, in PyTorch's order


@jax.custom_vjp
def _even_max_pool(x: jax.Array) -> jax.Array:
    return _forward(x)[0]


def _forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return pool(x, lambda values: values)[:2]


def pool(
    x: jax.Array, apply: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the maxima of apply(x), the index in _WINDOW of each as uint8, and x there.

    `apply`, which acts on each value, is called on the parts of the windows: the map itself would
    be written out.
    """
    sources = [x[:, row::2, column::2] for row, column in _WINDOW]
    values = [apply(part) for part in sources]
    largest = jnp.maximum(jnp.maximum(values[0], values[1]), jnp.maximum(values[2], values[3]))
    winner, source = jnp.full(largest.shape, 3, jnp.uint8), sources[3]
    for i in (2, 1, 0):
        found = values[i] == largest
        winner = jnp.where(found, jnp.uint8(i), winner)
        source = jnp.where(found, sources[i], source)
    return largest, winner, source


def to_winners(winner: jax.Array, gradient: jax.Array) -> jax.Array:
    """Puts each window's gradient at its winner, 0 elsewhere: [B, h, w, C] → [B, 2h, 2w, C]."""
    tpu = _to_winners_by_windows if gradient.dtype == jnp.bfloat16 else _to_winners_by_padding
    return jax.lax.platform_dependent(
        winner, gradient, tpu=tpu, cuda=_to_winners_by_broadcasting, default=_to_winners_by_padding
    )


def _to_winners_by_broadcasting(winner: jax.Array, gradient: jax.Array) -> jax.Array:
    """Puts each window's gradient at its winner, in one pass on GPUs."""
    batch, height, width, channels = winner.shape
    index = jnp.arange(4, dtype=jnp.uint8).reshape(2, 1, 2, 1)  # row, …, column, …
    winner, gradient = (x[:, :, None, :, None] for x in (winner, gradient))
    spread = jnp.where(winner == index, gradient, jnp.zeros((), gradient.dtype))
    return spread.reshape(batch, 2 * height, 2 * width, channels)


def _to_winners_by_windows(winner: jax.Array, gradient: jax.Array) -> jax.Array:
    """Puts each window's bfloat16 gradient at its winner, in one pass on TPUs.

    Gradient and winner share the 32 bits of an integer, which is repeated over its window as the
    sum of a map with gaps: the one way of repeating that TPUs' compiler fuses with what follows.
    """
    bits = jax.lax.bitcast_convert_type(gradient.astype(jnp.float32), jnp.int32)  # 16 are 0
    repeated = jax.lax.reduce_window(
        bits | winner.astype(jnp.int32),
        jnp.int32(0),
        jax.lax.add,
        window_dimensions=(1, 2, 2, 1),
        window_strides=(1, 1, 1, 1),
        padding=((0, 0), (1, 1), (1, 1), (0, 0)),
        base_dilation=(1, 2, 2, 1),
    )
    rows, columns = (jnp.arange(2 * size) % 2 for size in winner.shape[1:3])
    index = 2 * rows[:, None, None] + columns[:, None]
    values = jax.lax.bitcast_convert_type(repeated & ~3, jnp.float32).astype(gradient.dtype)
    return jnp.where((repeated & 3) == index, values, 0)


def _to_winners_by_padding(winner: jax.Array, gradient: jax.Array) -> jax.Array:
    """Puts each window's gradient at its winner, as a sum of four maps with gaps."""
    zero = jnp.zeros((), gradient.dtype)
    spread = zero
    for i, (row, column) in enumerate(_WINDOW):
        own = jnp.where(winner == i, gradient, zero)
        edges = ((0, 0, 0), (row, 1 - row, 1), (column, 1 - column, 1), (0, 0, 0))
        spread += jax.lax.pad(own, zero, edges)
    return spread


_even_max_pool.defvjp(_forward, lambda winner, gradient: (to_winners(winner, gradient),))
