"""Convolutions whose weight gradient suits CPUs.

On CPUs XLA computes the gradient of a kernel as a convolution with a kernel as large as the map. On
large maps it reaches a third of the speed of the convolution itself. Here it is a sum of matrix
products.

Flatten the padded map to P [N, C], row after row and image after image. Then a step of one cell is
a step of one in N, and a step of one row is a step of V, the padded width. With the gradient of the
output in a frame of the same size, Q [N, F], and zeros in the rest of that frame,

    dK[i, j] = Σ_n P[n + j]ᵀ Q[n − i·V].

The k shifts along a row belong to P and the k row shifts to Q. So one product of P's shifts side by
side, [kC, N], with Q's, [N, kF], gives all k² blocks, and 2k shifted copies are made instead of k².
They are made for a few cells at a time, which stay in the cache.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

CELLS = 1024  # of one product
LEAST_CELLS = 32 * 32  # of a map for which the products pay; below, XLA's kernel is small enough
LEAST_CHANNELS = 16


def convolve(
    x: jax.Array, kernel: jax.Array, stride: int, dilation: int, padding: int
) -> jax.Array:
    """Convolves x [B, H, W, C] with a square kernel [k, k, C, F], padded on every side.

    Gives [B, h, w, F]. On CPUs it has no forward-mode derivative where `_pays` holds.
    """
    if jax.default_backend() != "cpu" or x.dtype != jnp.float32:
        return _convolve(x, kernel, stride, dilation, padding)
    if kernel.shape[0] == 1 and padding == 0:
        return x[:, ::stride, ::stride] @ kernel[0, 0]
    if stride == 1 and _pays(x.shape, kernel.shape):
        return _convolve_by_products(dilation, padding, x, kernel)
    return _convolve(x, kernel, stride, dilation, padding)


def _pays(shape: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """Returns whether `weight_gradient` is faster than XLA's for these shapes of map and kernel."""
    return shape[1] * shape[2] > LEAST_CELLS and min(kernel[2:]) >= LEAST_CHANNELS


def _convolve(
    x: jax.Array, kernel: jax.Array, stride: int, dilation: int, padding: int
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding),) * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolve_by_products(
    dilation: int, padding: int, x: jax.Array, kernel: jax.Array
) -> jax.Array:
    return _convolve(x, kernel, 1, dilation, padding)


def _forward(
    dilation: int, padding: int, x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel, 1, dilation, padding), (x, kernel)


def _backward(
    dilation: int, padding: int, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    transpose = jax.linear_transpose(lambda x: _convolve(x, kernel, 1, dilation, padding), x)
    (dx,) = transpose(gradient)
    return dx, weight_gradient(x, gradient, kernel.shape[0], dilation, padding)


_convolve_by_products.defvjp(_forward, _backward)


def weight_gradient(
    x: jax.Array, gradient: jax.Array, size: int, dilation: int, padding: int
) -> jax.Array:
    """Computes the gradient of a kernel, for stride 1.

    Args:
        x: [B, H, W, C], the input of the convolution.
        gradient: [B, h, w, F], of the output.
        size: k of the kernel.
        dilation: as in `convolve`.
        padding: as in `convolve`.

    Returns:
        [k, k, C, F].
    """
    batch, height, width, channels = x.shape
    features, reach = gradient.shape[-1], dilation * (size - 1)
    frame = height + 2 * padding, width + 2 * padding
    cells = batch * frame[0] * frame[1]
    count = -(-cells // CELLS)
    block = -(-cells // count)
    # Images of zeros at the end, for the shifts and the last block.
    more = -(-(count * block - cells + reach * frame[1]) // (frame[0] * frame[1]))
    edges = (0, more), (padding, padding), (padding, padding), (0, 0)
    inputs = jnp.pad(x, edges).reshape(-1, channels)
    edges = (0, more), (reach, 0), (0, reach), (0, 0)  # low rows: all shifts are forward
    outputs = jnp.pad(gradient, edges).reshape(-1, features)

    def add(total: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        start = index * block
        # Transposed, because the products are then faster.
        columns = [
            lax.dynamic_slice_in_dim(inputs, start + j * dilation, block).T for j in range(size)
        ]
        rows = [
            lax.dynamic_slice_in_dim(outputs, start + (reach - i * dilation) * frame[1], block)
            for i in range(size)
        ]
        return total + jnp.concatenate(columns) @ jnp.concatenate(rows, 1), None

    zeros = jnp.zeros((size * channels, size * features), x.dtype)
    total, _ = lax.scan(add, zeros, jnp.arange(count))
    return total.reshape(size, channels, size, features).transpose(2, 0, 1, 3)
