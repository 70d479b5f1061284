"""Truncated VGG-16 with SSD's extra layers (Simonyan & Zisserman 2015; Liu et al. 2016)."""

from typing import Any

import flax.linen as nn
import jax

from scratchdet_jax.models.backbone import Backbone, Check, scale_channels
from scratchdet_jax.models.extras import plain_extras
from scratchdet_jax.models.layers import L2Norm, Layers
from scratchdet_jax.models.packing import Map
from scratchdet_jax.models.pooling import max_pool_2x2, max_pool_3x3

BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # convolutions, channels
FC_CHANNELS = 1024
FC6_DILATION = 6
STAGE_SOURCES = 2  # conv4_3 and fc7


class VGG16(nn.Module):
    """Truncated VGG-16 with extra layers; gives the source maps of the head.

    conv1_1 … conv5_3 with 2×2 pooling between the blocks, rounded up as in Caffe; 3×3 pooling of
    stride 1 after the last block; fc6 as a 3×3 convolution of dilation 6 and fc7 as a 1×1 one. The
    sources are conv4_3 (after ReLU), fc7 and the extra pairs (`plain_extras`).

    At 300×300 with SSD's extra strides (2, 2, 1, 1): maps of 38, 19, 10, 5, 3, 1.

    Attributes:
        block_channels: channels of the five blocks.
        fc_channels: channels of fc6 and fc7.
        extra_channels, extra_strides, last_convolutions: as in `plain_extras`.
        l2_norm: whether conv4_3 passes an `L2Norm` in a network without norms.
        pool_norms: whether a norm and a ReLU follow each pooling, as in the authors' Caffe release.
        layers: builds convolutions and norms.
    """

    block_channels: tuple[int, ...]
    fc_channels: int
    extra_channels: int
    extra_strides: tuple[int, ...]
    last_convolutions: bool
    l2_norm: bool
    pool_norms: bool
    layers: Layers

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[Map, ...]:
        """Maps images [B, H, W, 3] to source maps [B, h, w, c] in the compute type, finest first.

        Parameters: conv1_1, conv1_1_norm …, pool1_norm …, conv4_3_l2, fc6, fc7 …,
        extra1/conv1, norm1 …
        """
        x: Map = images.astype(self.layers.dtype)
        sources: list[Map] = []
        for i, ((count, _), channels) in enumerate(
            zip(BLOCKS, self.block_channels, strict=True), 1
        ):
            for j in range(1, count + 1):
                x = self._convolve(x, channels, 3, train, f"conv{i}_{j}")
            if i == 4:
                normalised = self.l2_norm and self.layers.norm == "none"
                sources.append(L2Norm(self.layers.dtype, name="conv4_3_l2")(x) if normalised else x)
            x = max_pool_2x2(x, ceil=True) if i < len(BLOCKS) else max_pool_3x3(x, stride=1)
            if self.pool_norms:
                x = self.layers.normalize(x, train, name=f"pool{i}_norm", relu=True)
        x = self._convolve(x, self.fc_channels, 3, train, "fc6", dilation=FC6_DILATION)
        x = self._convolve(x, self.fc_channels, 1, train, "fc7")
        sources.append(x)

        extras = plain_extras(
            x,
            train,
            channels=self.extra_channels,
            strides=self.extra_strides,
            last_convolutions=self.last_convolutions,
            layers=self.layers,
        )
        return (*sources, *(source for source, _ in extras))

    def _convolve(
        self, x: Map, features: int, kernel: int, train: bool, name: str, dilation: int = 1
    ) -> Map:
        x = self.layers.convolve(x, features, kernel, dilation=dilation, name=name)
        return self.layers.normalize(x, train, name=f"{name}_norm", relu=True)


def _build(config: Any, layers: Layers) -> VGG16:
    return VGG16(
        block_channels=tuple(scale_channels(c, config.width) for _, c in BLOCKS),
        fc_channels=scale_channels(FC_CHANNELS, config.width),
        extra_channels=scale_channels(config.extra_channels, config.width),
        extra_strides=tuple(config.extra_strides),
        last_convolutions=config.last_convolutions,
        l2_norm=config.l2_norm,
        pool_norms=config.pool_norms,
        layers=layers,
    )


def _checks(config: Any) -> dict[str, Check]:
    return {
        "preactivation": (not config.preactivation, "False: VGG-16 has no residual units"),
        "pool_norms": (
            not config.pool_norms or config.norm != "none",
            "False: without norms in the backbone there are none after the pooling either",
        ),
    }


BACKBONE = Backbone(
    _build, lambda config: "VGG-16", lambda config: STAGE_SOURCES, _checks, packs=True
)
