"""SSD's extra layers: pairs of a 1×1 and a spatial convolution (Liu et al. 2016)."""

from collections.abc import Sequence

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

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Source:
        """Maps x [B, H, W, C] to `channels` at ⌈H/2⌉ (stride 2), H − 2, or H − 1 (4×4)."""
        x = self.layers.convolve(x, self.squeeze, 1, name="conv1")
        x = self.layers.normalize(x, train, name="norm1", relu=True)
        padding = 1 if self.stride == 2 or self.kernel == 4 else 0
        x = self.layers.convolve(
            x, self.channels, self.kernel, stride=self.stride, padding=padding, name="conv2"
        )
        return self.layers.normalize(x, train, name="norm2", relu=True), x


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

    Args:
        x: the backbone's last source map.
        train: whether BatchNorm uses the statistics of the batch.
        channels: c; the first pair has (2c, 4c) channels, the others (c, 2c). SSD's c is 128.
        strides: one pair each.
        last_convolutions: whether a pair with a 4×4 kernel gives one more map, as in SSD512.
        layers: builds convolutions and norms.
    """
    sources = []
    c = channels
    for i, stride in enumerate(strides, 1):
        inner, outputs = (2 * c, 4 * c) if i == 1 else (c, 2 * c)
        sources.append(ExtraLayers(inner, outputs, stride, layers, name=f"extra{i}")(x, train))
        x = sources[-1][0]
    if last_convolutions:
        name = f"extra{len(strides) + 1}"
        sources.append(ExtraLayers(c, 2 * c, 1, layers, kernel=4, name=name)(x, train))
    return sources
