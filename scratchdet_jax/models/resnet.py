"""ResNet and Root-ResNet: a ResNet whose first convolutions do not down-sample (ScratchDet)."""

import flax.linen as nn
import jax

from scratchdet_jax.models.layers import Layers, max_pool_2x2, max_pool_3x3

BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
BOTTLENECK_DEPTHS = (50, 101)
EXPANSION = 4  # a bottleneck's output channels over its inner ones
STAGE_CHANNELS = (64, 128, 256, 512)
STAGE_STRIDES = (1, 2, 2, 2)


def first_source_stage(stem_stride: int) -> int:
    """The first stage (from 1) that is a source map: the one at an eighth of the image (38 at 300).

    So the head sees maps of the same sizes whatever the stem does, as in the paper's comparison of
    stems: stages 3 and 4 of Root-ResNet, stages 2, 3 and 4 of a ResNet that down-samples at once.
    """
    return 3 if stem_stride == 1 else 2


class RootBlock(nn.Module):
    """3×3 convolutions, each normalised, then 2×2 max-pooling; the first has the stride."""

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
            x = nn.relu(self.layers.normalize(x, train, name=f"norm{i}"))
        return max_pool_2x2(x)


class Conv7Stem(nn.Module):
    """ResNet's own stem (He et al. 2016a): a 7×7 convolution, normalised, then 3×3 max-pooling."""

    channels: int
    layers: Layers
    stride: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps x [B, H, W, 3] to [B, ⌈⌈H/stride⌉/2⌉, ⌈⌈W/stride⌉/2⌉, channels]."""
        x = self.layers.convolve(x, self.channels, 7, stride=self.stride, name="conv1")
        x = nn.relu(self.layers.normalize(x, train, name="norm1"))
        return max_pool_3x3(x, stride=2)


class BasicBlock(nn.Module):
    """Residual block of two 3×3 convolutions (He et al. 2016a): conv, norm, ReLU.

    The shortcut is the identity where shapes agree, else a normalised 1×1 convolution of the same
    stride. ScratchDet's extra blocks are this block with 128 channels; as in the authors'
    mmdetection release, one that changes neither size nor channels has no 1×1 convolution.
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
        y = nn.relu(layers.normalize(y, train, name="norm1"))
        y = layers.convolve(y, self.channels, 3, name="conv2")
        y = layers.normalize(y, train, name="norm2")
        return nn.relu(y + shortcut)


class PreactivationBlock(nn.Module):
    """Residual block of two 3×3 convolutions (He et al. 2016b): norm, ReLU, conv.

    A 1×1 projection has no norm of its own and sees the activated input, which it shares with the
    first convolution (as in the authors' Caffe release). Nothing follows the addition.
    """

    channels: int
    stride: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps x [B, H, W, C] to [B, ⌈H/stride⌉, ⌈W/stride⌉, channels]."""
        layers, shortcut = self.layers, x
        y = nn.relu(layers.normalize(x, train, name="norm1"))
        if self.stride != 1 or x.shape[-1] != self.channels:
            shortcut = layers.convolve(y, self.channels, 1, stride=self.stride, name="projection")
        y = layers.convolve(y, self.channels, 3, stride=self.stride, name="conv1")
        y = nn.relu(layers.normalize(y, train, name="norm2"))
        y = layers.convolve(y, self.channels, 3, name="conv2")
        return y + shortcut


class BottleneckBlock(nn.Module):
    """Residual block 1×1, 3×3, 1×1 (He et al. 2016a) with the stride on the 3×3.

    The paper strides the first 1×1; torchvision and the authors' mmdetection release the 3×3.
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
        y = nn.relu(layers.normalize(y, train, name="norm1"))
        y = layers.convolve(y, self.channels, 3, stride=self.stride, name="conv2")
        y = nn.relu(layers.normalize(y, train, name="norm2"))
        y = layers.convolve(y, outputs, 1, name="conv3")
        y = layers.normalize(y, train, name="norm3")
        return nn.relu(y + shortcut)


class PreactivationBottleneckBlock(nn.Module):
    """`BottleneckBlock` in the order norm, ReLU, conv; shortcut as in `PreactivationBlock`."""

    channels: int
    stride: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps x [B, H, W, C] to [B, ⌈H/stride⌉, ⌈W/stride⌉, 4 · channels]."""
        layers, shortcut, outputs = self.layers, x, EXPANSION * self.channels
        y = nn.relu(layers.normalize(x, train, name="norm1"))
        if self.stride != 1 or x.shape[-1] != outputs:
            shortcut = layers.convolve(y, outputs, 1, stride=self.stride, name="projection")
        y = layers.convolve(y, self.channels, 1, name="conv1")
        y = nn.relu(layers.normalize(y, train, name="norm2"))
        y = layers.convolve(y, self.channels, 3, stride=self.stride, name="conv2")
        y = nn.relu(layers.normalize(y, train, name="norm3"))
        y = layers.convolve(y, outputs, 1, name="conv3")
        return y + shortcut


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
    """A 3×3 convolution, then a 4×4 one padded by 1, each with norm and ReLU: a 2×2 map to 1×1.

    What the authors' mmdetection release ends its 512×512 network with.
    """

    channels: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps x [B, H, W, C] to [B, H − 1, W − 1, channels]."""
        x = self.layers.convolve(x, self.channels, 3, name="conv1")
        x = nn.relu(self.layers.normalize(x, train, name="norm1"))
        x = self.layers.convolve(x, self.channels, 4, padding=1, name="conv2")
        return nn.relu(self.layers.normalize(x, train, name="norm2"))


class ResNet(nn.Module):
    """ResNet or Root-ResNet with the extra blocks; gives the source maps of the head.

    The sources are the outputs of the stages from `first_source_stage` on and of each extra block,
    after the addition and ReLU. A pre-activation stage ends in a bare sum: a last norm and ReLU
    (`source3_norm`, `source4_norm`) makes a source of it, as He et al. 2016b end their networks,
    while the next stage reads the sum itself; the first extra block reads the activated source.
    Extra blocks are post-activation always.

    At 300×300 with the root block of stride 1 and extra strides (2, 2, 2, 2): maps of 38, 19, 10,
    5, 3, 2. With a stem of stride 2 the stages give 38, 19 and 10, and three extra blocks the rest.

    Attributes:
        depth: 18, 34, 50 or 101; the last two are of bottleneck blocks.
        stem: "root" (`RootBlock`) or "conv7" (`Conv7Stem`).
        stem_convs: convolutions of the root block.
        stem_stride: of the stem's first convolution, 1 or 2; a pooling of stride 2 follows.
        stage_channels: of the four stages (a bottleneck's inner ones); the stem has the first.
        extra_channels: of each extra block.
        extra_strides: one extra block each.
        last_convolutions: whether `LastConvolutions` gives one more map, named as an extra block.
        preactivation: whether the stages are of pre-activation blocks.
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
        x = sources[-1]
        for i, stride in enumerate(self.extra_strides, 1):
            x = BasicBlock(self.extra_channels, stride, self.layers, name=f"extra{i}")(x, train)
            sources.append(x)
        if self.last_convolutions:
            name = f"extra{len(self.extra_strides) + 1}"
            sources.append(LastConvolutions(self.extra_channels, self.layers, name=name)(x, train))
        return tuple(sources)

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
        return nn.relu(self.layers.normalize(x, train, name=name))
