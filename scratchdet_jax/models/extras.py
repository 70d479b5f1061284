"""The layers after a backbone: SSD's extra layers (Liu et al. 2016), and how source maps follow."""

from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn

from scratchdet_jax.models.layers import Layers
from scratchdet_jax.models.packing import Map

Source = tuple[Map, Map]  # a source map after its norm and ReLU, and its convolution's output


class ExtraLayers(nn.Module):
    """SSD's pair of extra layers: a 1×1 and a spatial convolution, each with norm and ReLU.

    The second is 3×3, padded by 1 at stride 2 and unpadded at stride 1; for the last map of SSD512
    it is 4×4, padded by 1.
    """

    squeeze: int
    channels: int
    stride: int
    layers: Layers
    kernel: int = 3
    squeeze_kernel: int = 1

    def __call__(self, x: Map, train: bool) -> Map:
        """Maps x [B, H, W, C] to `channels` at ⌈H/2⌉ (stride 2), H − 2, or H − 1 (4×4)."""
        return self.outputs(x, train)[0]

    @nn.compact
    def outputs(self, x: Map, train: bool) -> Source:
        """Returns the map, and the output of its last convolution."""
        x = self.layers.convolve(x, self.squeeze, self.squeeze_kernel, name="conv1")
        x = self.layers.normalize(x, train, name="norm1", relu=True)
        padding = 1 if self.stride == 2 or self.kernel == 4 else 0
        x = self.layers.convolve(
            x, self.channels, self.kernel, stride=self.stride, padding=padding, name="conv2"
        )
        return self.layers.normalize(x, train, name="norm2", relu=True), x


def source_maps(x: Map, train: bool, blocks: Iterable[Any]) -> list[Source]:
    """Applies blocks one after the other, inside a module; returns the `outputs` of each."""
    sources = []
    for block in blocks:
        sources.append(block.outputs(x, train))
        x = sources[-1][0]
    return sources


def plain_extras(
    x: Map,
    train: bool,
    *,
    channels: int,
    strides: Sequence[int],
    last_convolutions: bool,
    layers: Layers,
) -> list[Source]:
    """Makes SSD's pairs extra1, extra2 …, inside a module; returns their source maps.

    `channels` is c: the first pair has (2c, 4c) channels, the others (c, 2c); SSD's c is 128. Each
    stride makes a pair. With `last_convolutions`, a pair with a 4×4 kernel gives one more map, as
    in SSD512.
    """
    kernels = [(stride, 3) for stride in strides] + [(1, 4)] * last_convolutions
    pairs = []
    for i, (stride, kernel) in enumerate(kernels, 1):
        squeeze = 2 * channels if i == 1 else channels
        pairs.append(ExtraLayers(squeeze, 2 * squeeze, stride, layers, kernel, name=f"extra{i}"))
    return source_maps(x, train, pairs)
