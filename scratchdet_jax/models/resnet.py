"""ResNet, and ScratchDet's Root-ResNet, whose first convolutions do not downsample."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from scratchdet_jax.models.backbone import Backbone, Check, one_of, scale_channels
from scratchdet_jax.models.layers import Layers, add, relu
from scratchdet_jax.models.pooling import max_pool_2x2, max_pool_3x3

BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
BOTTLENECK_DEPTHS = (50, 101)
EXPANSION = 4  # output channels of a bottleneck / its inner channels
STAGE_CHANNELS = (64, 128, 256, 512)
STAGE_STRIDES = (1, 2, 2, 2)


def first_source_stage(stem_stride: int) -> int:
    """The first stage, counted from 1, whose output is a source map: an eighth of the image.

    The head then sees maps of the same sizes with every stem, as in the paper's comparison of
    stems: stages 3 and 4 of Root-ResNet; stages 2, 3 and 4 where the first convolution downsamples.
    """
    return 3 if stem_stride == 1 else 2


class RootBlock(nn.Module):
    """3×3 convolutions, each normalised, then 2×2 max-pooling; the first one has the stride."""

    channels: int
    layers: Layers
    convolutions: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps x [B, H, W, 3] to [B, ⌊⌈H/stride⌉/2⌋, ⌊⌈W/stride⌉/2⌋, channels]."""
        for i in range(1, self.convolutions + 1):
            stride = self.stride if i == 1 else 1
            x = self.layers.convolve(x, self.channels, 3, stride=stride, name=f"conv{i}")
            pool = i == self.convolutions and not any(size % 2 for size in x.shape[1:3])
            x = self.layers.normalize(x, train, name=f"norm{i}", relu=True, pool=pool)
        return x if pool else max_pool_2x2(x)


class Conv7Stem(nn.Module):
    """ResNet's stem (He et al. 2016a): a normalised 7×7 convolution, then 3×3 max-pooling."""

    channels: int
    layers: Layers
    stride: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps x [B, H, W, 3] to [B, ⌈⌈H/stride⌉/2⌉, ⌈⌈W/stride⌉/2⌉, channels]."""
        x = self.layers.convolve(x, self.channels, 7, stride=self.stride, name="conv1")
        x = self.layers.normalize(x, train, name="norm1", relu=True)
        return max_pool_3x3(x, stride=2)


class BasicBlock(nn.Module):
    """Residual block of two 3×3 convolutions (He et al. 2016a): conv, norm, ReLU.

    The shortcut is the identity where shapes agree, otherwise a normalised 1×1 convolution of the
    same stride. ScratchDet's extra blocks are this block with 128 channels; as in the authors'
    mmdetection release, a block that changes neither size nor channels has no 1×1 convolution.
    """

    channels: int
    stride: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps x [B, H, W, C] to [B, ⌈H/stride⌉, ⌈W/stride⌉, channels]."""
        layers, shortcut = self.layers, x
        if self.stride != 1 or x.shape[-1] != self.channels:
            shortcut = layers.convolve(x, self.channels, 1, stride=self.stride, name="projection")
            shortcut = layers.normalize(shortcut, train, name="projection_norm")
        y = layers.convolve(x, self.channels, 3, stride=self.stride, name="conv1")
        y = layers.normalize(y, train, name="norm1", relu=True)
        y = layers.convolve(y, self.channels, 3, name="conv2")
        y = layers.normalize(y, train, name="norm2")
        return relu(add(y, shortcut))


class PreactivationBlock(nn.Module):
    """Residual block of two 3×3 convolutions (He et al. 2016b): norm, ReLU, conv.

    A 1×1 projection has no norm and reads the activated input, like the first convolution (as in
    the authors' Caffe release). Nothing follows the addition.
    """

    channels: int
    stride: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps x [B, H, W, C] to [B, ⌈H/stride⌉, ⌈W/stride⌉, channels]."""
        layers, shortcut = self.layers, x
        y = layers.normalize(x, train, name="norm1", relu=True)
        if self.stride != 1 or x.shape[-1] != self.channels:
            shortcut = layers.convolve(y, self.channels, 1, stride=self.stride, name="projection")
        y = layers.convolve(y, self.channels, 3, stride=self.stride, name="conv1")
        y = layers.normalize(y, train, name="norm2", relu=True)
        y = layers.convolve(y, self.channels, 3, name="conv2")
        return add(y, shortcut)


class BottleneckBlock(nn.Module):
    """Residual block of 1×1, 3×3, 1×1 convolutions (He et al. 2016a), stride on the 3×3.

    The paper puts the stride on the first 1×1; torchvision and the authors' mmdetection release put
    it on the 3×3.
    """

    channels: int
    stride: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps x [B, H, W, C] to [B, ⌈H/stride⌉, ⌈W/stride⌉, 4 · channels]."""
        layers, shortcut, outputs = self.layers, x, EXPANSION * self.channels
        if self.stride != 1 or x.shape[-1] != outputs:
            shortcut = layers.convolve(x, outputs, 1, stride=self.stride, name="projection")
            shortcut = layers.normalize(shortcut, train, name="projection_norm")
        y = layers.convolve(x, self.channels, 1, name="conv1")
        y = layers.normalize(y, train, name="norm1", relu=True)
        y = layers.convolve(y, self.channels, 3, stride=self.stride, name="conv2")
        y = layers.normalize(y, train, name="norm2", relu=True)
        y = layers.convolve(y, outputs, 1, name="conv3")
        y = layers.normalize(y, train, name="norm3")
        return relu(add(y, shortcut))


class PreactivationBottleneckBlock(nn.Module):
    """`BottleneckBlock` in the order norm, ReLU, conv, with `PreactivationBlock`'s shortcut."""

    channels: int
    stride: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps x [B, H, W, C] to [B, ⌈H/stride⌉, ⌈W/stride⌉, 4 · channels]."""
        layers, shortcut, outputs = self.layers, x, EXPANSION * self.channels
        y = layers.normalize(x, train, name="norm1", relu=True)
        if self.stride != 1 or x.shape[-1] != outputs:
            shortcut = layers.convolve(y, outputs, 1, stride=self.stride, name="projection")
        y = layers.convolve(y, self.channels, 1, name="conv1")
        y = layers.normalize(y, train, name="norm2", relu=True)
        y = layers.convolve(y, self.channels, 3, stride=self.stride, name="conv2")
        y = layers.normalize(y, train, name="norm3", relu=True)
        y = layers.convolve(y, outputs, 1, name="conv3")
        return add(y, shortcut)


class Stage(nn.Module):
    """Residual blocks in a row: block1 … blockN; the first one has the stride."""

    block: type[nn.Module]
    blocks: int
    channels: int
    stride: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps x [B, H, W, C] to [B, ⌈H/stride⌉, ⌈W/stride⌉, the block's output channels]."""
        for i in range(1, self.blocks + 1):
            stride = self.stride if i == 1 else 1
            x = self.block(self.channels, stride, self.layers, name=f"block{i}")(x, train)
        return x


class LastConvolutions(nn.Module):
    """A 3×3 convolution, then a 4×4 one padded by 1, each with norm and ReLU; maps 2×2 to 1×1.

    The last layers of the authors' mmdetection release at 512×512.
    """

    channels: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps x [B, H, W, C] to [B, H − 1, W − 1, channels]."""
        x = self.layers.convolve(x, self.channels, 3, name="conv1")
        x = self.layers.normalize(x, train, name="norm1", relu=True)
        x = self.layers.convolve(x, self.channels, 4, padding=1, name="conv2")
        return self.layers.normalize(x, train, name="norm2", relu=True)


def extra_blocks(
    x: jax.Array,
    train: bool,
    *,
    channels: int,
    strides: Sequence[int],
    last_convolutions: bool,
    layers: Layers,
) -> list[jax.Array]:
    """Source maps of ScratchDet's extra blocks extra1, extra2 …; call it inside a module.

    Args:
        x: the backbone's last source map.
        train: whether BatchNorm uses the statistics of the batch.
        channels: output channels of each block.
        strides: one `BasicBlock` each.
        last_convolutions: whether `LastConvolutions` gives one more map, named like an extra block.
        layers: builds convolutions and norms.
    """
    sources = []
    for i, stride in enumerate(strides, 1):
        x = BasicBlock(channels, stride, layers, name=f"extra{i}")(x, train)
        sources.append(x)
    if last_convolutions:
        name = f"extra{len(strides) + 1}"
        sources.append(LastConvolutions(channels, layers, name=name)(x, train))
    return sources


class ResNet(nn.Module):
    """ResNet or Root-ResNet with the extra blocks; gives the source maps of the head.

    The sources are the outputs, after the addition and ReLU, of the stages from
    `first_source_stage` on and of the extra blocks. A pre-activation stage ends in a bare sum. The
    next stage reads that sum; its source map, which the first extra block reads too, is the sum
    after a final norm and ReLU (`source3_norm`, `source4_norm`), as at the end of He et al. 2016b's
    networks. Extra blocks are always post-activation.

    At 300×300 with a root block of stride 1 and extra strides (2, 2, 2, 2): maps of 38, 19, 10, 5,
    3, 2. With a stem of stride 2 the stages give 38, 19 and 10, and three extra blocks the rest.

    Attributes:
        depth: 18, 34, 50 or 101; the last two use bottleneck blocks.
        stem: "root" (`RootBlock`) or "conv7" (`Conv7Stem`).
        stem_convs: number of convolutions in the root block.
        stem_stride: stride of the stem's first convolution, 1 or 2; a pooling of stride 2 follows.
        stage_channels: channels of the four stages (inner ones of a bottleneck); the stem has the
            first.
        extra_channels: channels of each extra block.
        extra_strides: strides of the extra blocks.
        last_convolutions: whether `LastConvolutions` gives one more map.
        preactivation: whether the stages use pre-activation blocks.
        layers: builds convolutions and norms.
    """

    depth: int
    stem: str
    stem_convs: int
    stem_stride: int
    stage_channels: tuple[int, ...]
    extra_channels: int
    extra_strides: tuple[int, ...]
    last_convolutions: bool
    preactivation: bool
    layers: Layers

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, ...]:
        """Maps images [B, H, W, 3] to source maps [B, h, w, c] in the compute type, finest first.

        Parameters: root/conv1 … norm3 or stem/conv1, norm1; stage1/block1/conv1 …, extra1/conv1 …
        """
        x = self._stem()(images.astype(self.layers.dtype), train)
        sources = []
        stages = zip(BLOCKS_PER_STAGE[self.depth], self.stage_channels, STAGE_STRIDES, strict=True)
        for i, (count, channels, stride) in enumerate(stages, 1):
            x = Stage(self._block(), count, channels, stride, self.layers, name=f"stage{i}")(
                x, train
            )
            if i >= first_source_stage(self.stem_stride):
                sources.append(self._activate(x, train, f"source{i}_norm"))
        extras = extra_blocks(
            sources[-1],
            train,
            channels=self.extra_channels,
            strides=self.extra_strides,
            last_convolutions=self.last_convolutions,
            layers=self.layers,
        )
        return (*sources, *extras)

    def _stem(self) -> nn.Module:
        channels, stride = self.stage_channels[0], self.stem_stride
        if self.stem == "conv7":
            return Conv7Stem(channels, self.layers, stride, name="stem")
        return RootBlock(channels, self.layers, self.stem_convs, stride, name="root")

    def _block(self) -> type[nn.Module]:
        if self.depth in BOTTLENECK_DEPTHS:
            return PreactivationBottleneckBlock if self.preactivation else BottleneckBlock
        return PreactivationBlock if self.preactivation else BasicBlock

    def _activate(self, x: jax.Array, train: bool, name: str) -> jax.Array:
        """The source map of a stage's output."""
        if not self.preactivation:
            return x
        return self.layers.normalize(x, train, name=name, relu=True)


def _build(config: Any, layers: Layers) -> ResNet:
    return ResNet(
        depth=config.depth,
        stem=config.stem,
        stem_convs=config.stem_convs,
        stem_stride=config.stem_stride,
        stage_channels=tuple(scale_channels(c, config.width) for c in STAGE_CHANNELS),
        extra_channels=scale_channels(config.extra_channels, config.width),
        extra_strides=tuple(config.extra_strides),
        last_convolutions=config.last_convolutions,
        preactivation=config.preactivation,
        layers=layers,
    )


def _name(config: Any) -> str:
    """Such as "Root-ResNet-34"; a stride that is unusual for the stem is mentioned."""
    prefix, usual_stride = ("Root-", 1) if config.stem == "root" else ("", 2)
    name = f"{prefix}ResNet-{config.depth}"
    if config.stem_stride == usual_stride:
        return name
    return f"{name} (stem of stride {config.stem_stride})"


def _sources(config: Any) -> int:
    return len(STAGE_CHANNELS) - first_source_stage(config.stem_stride) + 1


def _checks(config: Any) -> dict[str, Check]:
    return {
        "stem": one_of(config.stem, ("root", "conv7")),
        "stem_stride": one_of(config.stem_stride, (1, 2)),
        "depth": one_of(config.depth, tuple(BLOCKS_PER_STAGE)),
        "stem_convs": (config.stem_convs >= 1, "at least 1 convolution"),
    }


BACKBONE = Backbone(_build, _name, _sources, _checks, packs=True)
