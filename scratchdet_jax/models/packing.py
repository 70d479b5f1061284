"""Packed maps: two images lie side by side in the channels.

TPUs compute with 128 lanes of channels, and their matrix units multiply by 128×128 weights. A map
of 64 channels leaves half of the lanes and three quarters of the matrix unit unused. A packed map
[B/2, H, W, 2C] fills them: a convolution of it is one with a block-diagonal kernel. Half of that
kernel is zeros, so a convolution of 64 channels takes half the time, not a quarter, and everything
else that reads a map takes half the time. Parameters and results stay those of the plain map.

Networks pass a `Packed` map on as they pass an array; its `shape` is the shape of the plain map.
"""

import dataclasses

import jax
import jax.numpy as jnp

LANES = 128  # channels that a TPU computes at once
IMAGES = 2  # images in one packed image


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """A map [B, H, W, C] as an array [B/2, H, W, 2C]: images i and B/2 + i side by side."""

    array: jax.Array

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape [B, H, W, C] of the plain map."""
        half, height, width, channels = self.array.shape
        return IMAGES * half, height, width, channels // IMAGES


Map = jax.Array | Packed  # [B, H, W, C]


def fits(shape: tuple[int, ...], features: int) -> bool:
    """Returns whether packing a map of `shape` [B, H, W, C] pays for convolutions to `features`."""
    return shape[0] % IMAGES == 0 and max(shape[-1], features) * IMAGES <= LANES


def pack(x: Map) -> Packed:
    """Packs x [B, H, W, C] with even B."""
    if isinstance(x, Packed):
        return x
    return Packed(jnp.concatenate(jnp.split(x, IMAGES), -1))


def unpack(x: Map) -> jax.Array:
    """Returns x as a plain map [B, H, W, C]."""
    if not isinstance(x, Packed):
        return x
    return jnp.concatenate(jnp.split(x.array, IMAGES, -1))


def block_diagonal(kernel: jax.Array) -> jax.Array:
    """Returns the kernel [k, k, 2C, 2F] that convolves both images with `kernel` [k, k, C, F]."""
    zeros = jnp.zeros_like(kernel)
    rows = [
        jnp.concatenate([kernel if i == j else zeros for j in range(IMAGES)], -1)
        for i in range(IMAGES)
    ]
    return jnp.concatenate(rows, -2)


def per_image(values: jax.Array) -> jax.Array:
    """Repeats values [..., C] of channels for both images: [..., 2C]."""
    return jnp.concatenate([values] * IMAGES, -1)
