"""Root-ResNet: a ResNet without down-sampling in its first convolutions (ScratchDet, CVPR 2019)."""

import flax.linen as nn
import jax

from scratchdet_jax.models.layers import Layers, max_pool_2x2

BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
STAGE_CHANNELS = (64, 128, 256, 512)
STAGE_STRIDES = (1, 2, 2, 2)
FIRST_SOURCE_STAGE = 3  # 38×38 at 300; counted from 1


class RootBlock(nn.Module):
    """Three 3×3 convolutions of stride 1, each normalised, then 2×2 max-pooling."""

    channels: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps x [B, H, W, 3] to [B, ⌊H/2⌋, ⌊W/2⌋, channels]."""
        for i in (1, 2, 3):
            x = self.layers.convolve(x, self.channels, 3, name=f"conv{i}")
            x = nn.relu(self.layers.normalize(x, train, name=f"norm{i}"))
        return max_pool_2x2(x)


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


class Stage(nn.Module):
    """Residual blocks in a row: block1 … blockN; the first one has the stride."""

    blocks: int
    channels: int
    stride: int
    preactivation: bool
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps x [B, H, W, C] to [B, ⌈H/stride⌉, ⌈W/stride⌉, channels]."""
        block = PreactivationBlock if self.preactivation else BasicBlock
        for i in range(1, self.blocks + 1):
            stride = self.stride if i == 1 else 1
            x = block(self.channels, stride, self.layers, name=f"block{i}")(x, train)
        return x


class RootResNet(nn.Module):
    """Root-ResNet with the extra blocks; gives the source maps of the head.

    The sources are the outputs of stages 3 and 4 and of each extra block, after the addition and
    ReLU. A pre-activation stage ends in a bare sum: a last norm and ReLU (`source3_norm`,
    `source4_norm`) makes a source of it, as He et al. 2016b end their networks, while the next
    stage reads the sum itself; the first extra block reads the activated source. Extra blocks are
    post-activation always.

    At 300×300 and extra strides (2, 2, 2, 2): maps of 38, 19, 10, 5, 3, 2.

    Attributes:
        depth: 18 or 34.
        stage_channels: of the four stages; the root block has as many as the first.
        extra_channels: of each extra block.
        extra_strides: one extra block each.
        preactivation: whether the stages use `PreactivationBlock`.
        layers: builds convolutions and norms.
    """

    depth: int
    stage_channels: tuple[int, ...]
    extra_channels: int
    extra_strides: tuple[int, ...]
    preactivation: bool
    layers: Layers

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, ...]:
        """Maps images [B, H, W, 3] to source maps [B, h, w, c] in the compute type, finest first.

        Parameters: root/conv1 … norm3, stage1/block1/conv1 …, extra1/conv1 …
        """
        x = RootBlock(self.stage_channels[0], self.layers, name="root")(
            images.astype(self.layers.dtype), train
        )
        sources = []
        blocks = BLOCKS_PER_STAGE[self.depth]
        stages = zip(blocks, self.stage_channels, STAGE_STRIDES, strict=True)
        for i, (count, channels, stride) in enumerate(stages, 1):
            stage = Stage(
                count, channels, stride, self.preactivation, self.layers, name=f"stage{i}"
            )
            x = stage(x, train)
            if i >= FIRST_SOURCE_STAGE:
                sources.append(self._activate(x, train, f"source{i}_norm"))
        x = sources[-1]
        for i, stride in enumerate(self.extra_strides, 1):
            x = BasicBlock(self.extra_channels, stride, self.layers, name=f"extra{i}")(x, train)
            sources.append(x)
        return tuple(sources)

    def _activate(self, x: jax.Array, train: bool, name: str) -> jax.Array:
        """The source map of a stage's output."""
        if not self.preactivation:
            return x
        return nn.relu(self.layers.normalize(x, train, name=name))
