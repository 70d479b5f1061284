"""ResNet, and ScratchDet's Root-ResNet, whose first convolutions do not downsample."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from scratchdet_jax.models.backbone import Backbone, Check, one_of, scale_channels
from scratchdet_jax.models.extras import ExtraLayers, Source, plain_extras, source_maps
from scratchdet_jax.models.layers import Layers, add, relu
from scratchdet_jax.models.packing import Map
from scratchdet_jax.models.pooling import max_pool_2x2, max_pool_3x3

BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
BOTTLENECK_DEPTHS = (50, 101)
EXPANSION = 4  # output channels of a bottleneck / its inner channels
STAGE_CHANNELS = (64, 128, 256, 512)
FIRST_SOURCE_STRIDE = 8  # of the first source map relative to the image


class RootBlock(nn.Module):
    """3×3 convolutions, each normalised, then 2×2 max-pooling; the first one has the stride.

    Without `pool` there is no pooling, and the map is twice as large.
    """

    channels: int
    layers: Layers
    convolutions: int = 3
    stride: int = 1
    pool: bool = True

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Map:
        """Maps x [B, H, W, 3] to [B, ⌊⌈H/stride⌉/2⌋, ⌊⌈W/stride⌉/2⌋, channels]."""
        for i in range(1, self.convolutions + 1):
            stride = self.stride if i == 1 else 1
            x = self.layers.convolve(x, self.channels, 3, stride=stride, name=f"conv{i}")
            last, even = i == self.convolutions, not any(size % 2 for size in x.shape[1:3])
            pool = self.pool and last and even
            x = self.layers.normalize(x, train, name=f"norm{i}", relu=True, pool=pool)
        return x if pool or not self.pool else max_pool_2x2(x)


class Conv7Stem(nn.Module):
    """ResNet's stem (He et al. 2016a): a normalised 7×7 convolution, then 3×3 max-pooling.

    Without `pool` there is no pooling, and the map is twice as large.
    """

    channels: int
    layers: Layers
    stride: int = 2
    pool: bool = True

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Map:
        """Maps x [B, H, W, 3] to [B, ⌈⌈H/stride⌉/2⌉, ⌈⌈W/stride⌉/2⌉, channels]."""
        x = self.layers.convolve(x, self.channels, 7, stride=self.stride, name="conv1")
        x = self.layers.normalize(x, train, name="norm1", relu=True)
        return max_pool_3x3(x, stride=2) if self.pool else x


class ResidualBlock(nn.Module):
    """A block with a shortcut: two 3×3 convolutions, or the three of a bottleneck.

    A bottleneck is 1×1, 3×3, 1×1 with the stride on the 3×3, as in torchvision and the authors'
    mmdetection release; the paper puts it on the first 1×1. The shortcut is the identity where
    shapes agree, otherwise a 1×1 convolution (`projection`). A subclass defines `outputs`: the
    output of the block [B, ⌈H/stride⌉, ⌈W/stride⌉, c], and that of its last convolution; c is
    `channels`, or 4 · channels of a bottleneck.

    Attributes:
        activated: whether the input is activated already, which a pre-activation block has to know.
    """

    channels: int
    stride: int
    layers: Layers
    bottleneck: bool = False
    activated: bool = False

    def __call__(self, x: Map, train: bool) -> Map:
        """Returns the output of the block."""
        return self.outputs(x, train)[0]

    def convolutions(self) -> tuple[tuple[int, int, int], ...]:
        """Returns output channels, kernel size and stride of each convolution."""
        inner, stride = self.channels, self.stride
        if self.bottleneck:
            return (inner, 1, 1), (inner, 3, stride), (EXPANSION * inner, 1, 1)
        return (inner, 3, stride), (inner, 3, 1)

    def projects(self, x: Map) -> bool:
        """Returns whether the shortcut of x needs a projection."""
        return self.stride != 1 or x.shape[-1] != self.convolutions()[-1][0]


class BasicBlock(ResidualBlock):
    """Residual block in the order convolution, norm, ReLU (He et al. 2016a).

    The projection is normalised. ScratchDet's extra blocks are this block with 128 channels; as in
    the authors' mmdetection release, a block that changes neither size nor channels has no
    projection.
    """

    @nn.compact
    def outputs(self, x: Map, train: bool) -> Source:
        """Maps x [B, H, W, C]; see `ResidualBlock`."""
        layers, convolutions, y = self.layers, self.convolutions(), x
        if self.projects(x):
            features = convolutions[-1][0]
            x = layers.convolve(x, features, 1, stride=self.stride, name="projection")
            x = layers.normalize(x, train, name="projection_norm")
        for i, (features, kernel, stride) in enumerate(convolutions, 1):
            last = layers.convolve(y, features, kernel, stride=stride, name=f"conv{i}")
            y = layers.normalize(last, train, name=f"norm{i}", relu=i < len(convolutions))
        return relu(add(y, x)), last


class PreactivationBlock(ResidualBlock):
    """Residual block in the order norm, ReLU, convolution (He et al. 2016b).

    The projection has no norm and reads the activated input, like the first convolution (as in the
    authors' Caffe release). Nothing follows the addition. An `activated` block begins with a
    convolution.
    """

    @nn.compact
    def outputs(self, x: Map, train: bool) -> Source:
        """Maps x [B, H, W, C]; see `ResidualBlock`."""
        layers, convolutions, y = self.layers, self.convolutions(), x
        if not self.activated:
            y = layers.normalize(x, train, name="norm1", relu=True)
        if self.projects(x):
            features = convolutions[-1][0]
            x = layers.convolve(y, features, 1, stride=self.stride, name="projection")
        for i, (features, kernel, stride) in enumerate(convolutions, 1):
            if i > 1:
                y = layers.normalize(y, train, name=f"norm{i}", relu=True)
            y = layers.convolve(y, features, kernel, stride=stride, name=f"conv{i}")
        return add(y, x), y


class Stage(nn.Module):
    """Residual blocks in a row: block1 … blockN; the first one has the stride.

    Attributes:
        blocks: N.
        channels, bottleneck: as in `ResidualBlock`.
        preactivation: whether the blocks are pre-activation blocks.
        activated: as in `ResidualBlock`, for the first block.
    """

    blocks: int
    channels: int
    stride: int
    layers: Layers
    bottleneck: bool
    preactivation: bool
    activated: bool

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Source:
        """Maps x [B, H, W, C] to the output of the last block and that of its last convolution."""
        kind = PreactivationBlock if self.preactivation else BasicBlock
        for i in range(1, self.blocks + 1):
            first = i == 1
            block = kind(
                self.channels,
                self.stride if first else 1,
                self.layers,
                self.bottleneck,
                activated=self.activated and first,
                name=f"block{i}",
            )
            x, convolution = block.outputs(x, train)
        return x, convolution


def residual_extras(
    block: type[ResidualBlock],
    x: Map,
    train: bool,
    *,
    channels: int,
    strides: Sequence[int],
    last_convolutions: bool,
    layers: Layers,
) -> list[Source]:
    """Makes the blocks extra1, extra2 …, inside a module; returns their source maps.

    With `last_convolutions`, a 3×3 convolution and a 4×4 one, which maps 2×2 to 1×1, give one more
    map: the last layers of the authors' mmdetection release at 512×512. For the other arguments see
    `plain_extras`.
    """
    blocks: list[nn.Module] = [
        block(channels, stride, layers, name=f"extra{i}") for i, stride in enumerate(strides, 1)
    ]
    if last_convolutions:
        name = f"extra{len(strides) + 1}"
        blocks.append(ExtraLayers(channels, channels, 1, layers, 4, squeeze_kernel=3, name=name))
    return source_maps(x, train, blocks)


def extra_blocks(x: Map, train: bool, **settings: Any) -> list[Map]:
    """Makes ScratchDet's extra blocks extra1, extra2 …, inside a module; returns their source maps.

    Takes x, the backbone's last source map, and the other arguments of `residual_extras`.
    """
    return [output for output, _ in residual_extras(BasicBlock, x, train, **settings)]


EXTRAS: dict[str, Callable[..., list[Source]]] = {
    "residual": functools.partial(residual_extras, BasicBlock),  # ScratchDet's
    "preactivation": functools.partial(residual_extras, PreactivationBlock),
    "plain": plain_extras,
}
"""The layers after the stages by `config.model.extras`; they give further source maps."""


class ResNet(nn.Module):
    """ResNet or Root-ResNet with the extra blocks; gives the source maps of the head.

    The sources are the outputs, after the addition and ReLU, of the stages in `with_source` and
    of the extra blocks. A pre-activation stage ends in a bare sum. The next stage reads that sum;
    its source map is the sum after a final norm and ReLU (`source3_norm`, `source4_norm`), as at
    the end of He et al. 2016b's networks. The extra blocks read that map, unless they are
    pre-activation blocks, which read the sum.

    At 300×300 with a root block of stride 1 and extra strides (2, 2, 2, 2): maps of 38, 19, 10, 5,
    3, 2. With a stem of stride 2 the stages give 38, 19 and 10, and three extra blocks the rest.

    Attributes:
        depth: 18, 34, 50 or 101; the last two use bottleneck blocks.
        stem: makes the layers before the stages.
        with_source: the stages that give source maps; see `_source_stages`.
        stage_channels: channels of the four stages (inner ones of a bottleneck).
        stage_strides: stride of each stage, 1 or 2.
        preactivation: whether the stages use pre-activation blocks.
        first_preactivation: whether the first of them also begins with norm and ReLU.
        extras: makes the layers after the stages.
        activated_extras: whether the extra blocks read an activated map; pre-activation blocks do
            not.
        layers: builds convolutions and norms.
    """

    depth: int
    stem: Callable[[], nn.Module]
    with_source: tuple[int, ...]
    stage_channels: tuple[int, ...]
    stage_strides: tuple[int, ...]
    preactivation: bool
    first_preactivation: bool
    extras: Callable[[Map, bool], list[Source]]
    activated_extras: bool
    layers: Layers

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[Map, ...]:
        """Maps images [B, H, W, 3] to source maps [B, h, w, c] in the compute type, finest first.

        Parameters: root/conv1 … norm3 or stem/conv1, norm1; stage1/block1/conv1 …, extra1/conv1 …
        """
        x: Map = images.astype(self.layers.dtype)
        x = self.stem()(x, train)
        sources = []
        sizes = zip(self.stage_channels, self.stage_strides, strict=True)
        for i, (channels, stride) in enumerate(sizes, 1):
            stage = Stage(
                BLOCKS_PER_STAGE[self.depth][i - 1],
                channels,
                stride,
                self.layers,
                bottleneck=self.depth in BOTTLENECK_DEPTHS,
                preactivation=self.preactivation,
                activated=self.preactivation and not self.first_preactivation and i == 1,
                name=f"stage{i}",
            )
            x, convolution = stage(x, train)
            if i in self.with_source:
                sources.append(self.stage_source(i, x, convolution, train))
        return (*sources, *self.extra_sources(x, sources[-1], train))

    def stage_source(self, number: int, output: Map, convolution: Map, train: bool) -> Map:
        """Returns a stage's source map, given its output and that of its last convolution."""
        del convolution
        return self.activate(output, train, f"source{number}_norm")

    def extra_sources(self, output: Map, source: Map, train: bool) -> list[Map]:
        """Returns the extra blocks' source maps, given the last stage's output and source map."""
        if self.activated_extras:
            return [x for x, _ in self.extras(source, train)]
        return [
            self.activate(x, train, f"extra{i}_source_norm")
            for i, (x, _) in enumerate(self.extras(output, train), 1)
        ]

    def activate(self, x: Map, train: bool, name: str) -> Map:
        """Applies norm and ReLU to a pre-activation block's output; any other is activated."""
        if not self.preactivation:
            return x
        return self.layers.normalize(x, train, name=name, relu=True)


class CaffeResNet(ResNet):
    """The network of the authors' Caffe release, where convolutions give the source maps.

    The sources are the outputs of the last convolutions of stages and extra blocks, before the
    addition. The extra blocks read the output of the last stage, after norm and ReLU
    (`source4_norm`) unless they are pre-activation blocks.
    """

    def stage_source(self, number: int, output: Map, convolution: Map, train: bool) -> Map:
        """Returns the output of the stage's last convolution."""
        del number, output, train
        return convolution

    def extra_sources(self, output: Map, source: Map, train: bool) -> list[Map]:
        """Returns the outputs of the extra blocks' last convolutions."""
        del source
        if self.activated_extras:
            output = self.activate(output, train, f"source{len(self.stage_channels)}_norm")
        return [x for _, x in self.extras(output, train)]


def _build(config: Any, layers: Layers) -> ResNet:
    network = CaffeResNet if config.source_maps == "convolution" else ResNet
    channels = tuple(scale_channels(c, config.width) for c in STAGE_CHANNELS)
    stem: Callable[..., nn.Module] = functools.partial(Conv7Stem, name="stem")
    if config.stem == "root":
        stem = functools.partial(RootBlock, convolutions=config.stem_convs, name="root")
    stem = functools.partial(
        stem, channels[0], layers, stride=config.stem_stride, pool=config.stem_pool
    )
    return network(
        depth=config.depth,
        stem=stem,
        with_source=_source_stages(config),
        stage_channels=channels,
        stage_strides=tuple(config.stage_strides),
        preactivation=config.preactivation,
        first_preactivation=config.first_preactivation,
        extras=functools.partial(
            EXTRAS[config.extras],
            channels=scale_channels(config.extra_channels, config.width),
            strides=tuple(config.extra_strides),
            last_convolutions=config.last_convolutions,
            layers=layers,
        ),
        activated_extras=config.extras != "preactivation",
        layers=layers,
    )


def _name(config: Any) -> str:
    """Names the network, such as "Root-ResNet-34", with a stride that is unusual for the stem."""
    prefix, usual_stride = ("Root-", 1) if config.stem == "root" else ("", 2)
    name = f"{prefix}ResNet-{config.depth}"
    notes = []
    if config.stem_stride != usual_stride:
        notes.append(f"stem of stride {config.stem_stride}")
    if not config.stem_pool:
        notes.append("no pooling in the stem")
    return f"{name} ({', '.join(notes)})" if notes else name


def _source_stages(config: Any) -> tuple[int, ...]:
    """Counts from 1 the stages that give source maps: an eighth of the image or less.

    The head then sees maps of the same sizes with every stem, as in the paper's comparison of
    stems: stages 3 and 4 of Root-ResNet; stages 2, 3 and 4 where the first convolution downsamples.
    """
    total = config.stem_stride * (2 if config.stem_pool else 1)
    strides = [total := total * stride for stride in config.stage_strides]
    return tuple(i for i, stride in enumerate(strides, 1) if stride >= FIRST_SOURCE_STRIDE)


def _sources(config: Any) -> int:
    return len(_source_stages(config))


def _checks(config: Any) -> dict[str, Check]:
    strides = tuple(config.stage_strides)
    return {
        "stem": one_of(config.stem, ("root", "conv7")),
        "stem_stride": one_of(config.stem_stride, (1, 2)),
        "depth": one_of(config.depth, tuple(BLOCKS_PER_STAGE)),
        "stem_convs": (config.stem_convs >= 1, "at least 1 convolution"),
        "stage_strides": (
            len(strides) == len(STAGE_CHANNELS) and set(strides) <= {1, 2} and _sources(config) > 0,
            "four strides of 1 or 2 that reduce the image to an eighth or less",
        ),
        "extras": (
            config.extras in ("residual", "plain")
            or (config.extras == "preactivation" and config.preactivation),
            "'residual', 'plain' or, with config.model.preactivation, 'preactivation'",
        ),
        "source_maps": one_of(config.source_maps, ("output", "convolution")),
    }


BACKBONE = Backbone(_build, _name, _sources, _checks, packs=True)
