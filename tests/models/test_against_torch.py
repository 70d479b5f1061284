"""Values and gradients of every layer compared with PyTorch, copied weights, float32 on the CPU.

The PyTorch side is written from the descriptions of the paper and the releases, with PyTorch's own
layers, and names its submodules like the Flax side.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from scratchdet_jax.models.layers import Layers
from scratchdet_jax.models.normalization import BatchNorm
from scratchdet_jax.models.pooling import max_pool_2x2, max_pool_3x3
from scratchdet_jax.models.resnet import BasicBlock, PreactivationBlock, RootBlock
from scratchdet_jax.models.ssd import PredictionLevel, build_model

torch = pytest.importorskip("torch")
nn, relu = torch.nn, torch.nn.functional.relu

from tests.models.torch_comparison import assert_same, assert_same_network, to_nchw  # noqa: E402


class TorchRoot(nn.Module):
    def __init__(self, channels):
        super().__init__()
        for i in (1, 2, 3):
            ins = 3 if i == 1 else channels
            self.add_module(f"conv{i}", nn.Conv2d(ins, channels, 3, 1, 1, bias=False))
            self.add_module(f"norm{i}", nn.BatchNorm2d(channels))
        self.pool = nn.MaxPool2d(2, 2)

    def forward(self, x):
        x = relu(self.norm1(self.conv1(x)))
        x = relu(self.norm2(self.conv2(x)))
        return self.pool(relu(self.norm3(self.conv3(x))))


class TorchBasic(nn.Module):
    def __init__(self, ins, outs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outs)
        self.projects = stride != 1 or ins != outs
        if self.projects:
            self.projection = nn.Conv2d(ins, outs, 1, stride, bias=False)
            self.projection_norm = nn.BatchNorm2d(outs)

    def forward(self, x):
        y = self.norm2(self.conv2(relu(self.norm1(self.conv1(x)))))
        return relu(y + (self.projection_norm(self.projection(x)) if self.projects else x))


class TorchPreactivation(nn.Module):
    def __init__(self, ins, outs, stride):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(ins)
        self.conv1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.projects = stride != 1 or ins != outs
        if self.projects:
            self.projection = nn.Conv2d(ins, outs, 1, stride, bias=False)

    def forward(self, x):
        active = relu(self.norm1(x))
        y = self.conv2(relu(self.norm2(self.conv1(active))))
        return y + (self.projection(active) if self.projects else x)


class TorchLevel(nn.Module):
    def __init__(self, ins, anchors, classes, norm):
        super().__init__()
        self.classes, self.norm = classes, norm
        for name, values in (("class", classes), ("box", 4)):
            outs = anchors * values
            self.add_module(f"{name}_conv", nn.Conv2d(ins, outs, 3, 1, 1, bias=not norm))
            if norm:
                self.add_module(f"{name}_norm", nn.BatchNorm2d(outs))

    def forward(self, x):
        logits, offsets = self.class_conv(x), self.box_conv(x)
        if self.norm:
            logits, offsets = self.class_norm(logits), self.box_norm(offsets)
        return tuple(
            y.permute(0, 2, 3, 1).reshape(len(x), -1, values)
            for y, values in ((logits, self.classes), (offsets, 4))
        )


class TorchDetector(nn.Module):
    """Root-ResNet-18 at an eighth of the width, with extra blocks of 16 channels."""

    blocks, channels, strides = (2, 2, 2, 2), (8, 16, 32, 64), (1, 2, 2, 2)

    def __init__(self, preactivation, head_norm, extra_strides, anchors, classes):
        super().__init__()
        block = TorchPreactivation if preactivation else TorchBasic
        self.preactivation, ins = preactivation, self.channels[0]
        self.root = TorchRoot(ins)
        for i in range(4):
            stage, outs = nn.Module(), self.channels[i]
            for j in range(self.blocks[i]):
                stage.add_module(f"block{j + 1}", block(ins, outs, 1 if j else self.strides[i]))
                ins = outs
            self.add_module(f"stage{i + 1}", stage)
        if preactivation:
            self.source3_norm = nn.BatchNorm2d(self.channels[2])
            self.source4_norm = nn.BatchNorm2d(self.channels[3])
        self.extras = [f"extra{i + 1}" for i in range(len(extra_strides))]
        for name, stride in zip(self.extras, extra_strides, strict=True):
            self.add_module(name, TorchBasic(ins, 16, stride))
            ins = 16
        self.head = nn.Module()
        source_channels = (32, 64, *[16] * len(extra_strides))
        for i, (c, a) in enumerate(zip(source_channels, anchors, strict=True), 1):
            self.head.add_module(f"level{i}", TorchLevel(c, a, classes, head_norm))

    def forward(self, images):
        x, sources = self.root(images), []
        for i in range(1, 5):
            for block in getattr(self, f"stage{i}").children():
                x = block(x)
            if i >= 3:
                norm = getattr(self, f"source{i}_norm", None)
                sources.append(relu(norm(x)) if norm else x)
        x = sources[-1]
        for name in self.extras:
            x = getattr(self, name)(x)
            sources.append(x)
        levels = [level(x) for level, x in zip(self.head.children(), sources, strict=True)]
        return tuple(torch.cat(parts, 1) for parts in zip(*levels, strict=True))


class Convolution(linen.Module):
    """`Layers.convolve` as a module, named like the PyTorch side."""

    kernel: int
    stride: int
    dilation: int = 1
    padding: int | None = None

    @linen.compact
    def __call__(self, x, train):
        return Layers(norm="none").convolve(
            x,
            4,
            self.kernel,
            stride=self.stride,
            dilation=self.dilation,
            padding=self.padding,
            name="conv",
        )


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1), (1, 2)])
def test_convolution(kernel, stride, size):
    module = nn.Sequential()
    module.add_module("conv", nn.Conv2d(3, 4, kernel, stride, (kernel - 1) // 2))
    assert_same(Convolution(kernel, stride), module, (2, size, size, 3))


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "padding"), [(3, 1, 6, 6), (4, 1, 1, 1), (7, 2, 1, 3)]
)
def test_convolution_with_its_own_padding(kernel, stride, dilation, padding, size):
    module = nn.Sequential()
    module.add_module("conv", nn.Conv2d(3, 4, kernel, stride, padding, dilation))
    # The layer's default padding fits all kernels except the even one.
    given = padding if kernel == 4 else None
    assert_same(Convolution(kernel, stride, dilation, given), module, (2, size, size, 3))


@pytest.mark.parametrize("size", [(6, 8), (7, 9)])
@pytest.mark.parametrize(
    ("pool", "torch_pool"),
    [
        (max_pool_2x2, nn.MaxPool2d(2, 2)),
        (lambda x: max_pool_2x2(x, ceil=True), nn.MaxPool2d(2, 2, ceil_mode=True)),
        (lambda x: max_pool_3x3(x, stride=1), nn.MaxPool2d(3, 1, 1)),
        (lambda x: max_pool_3x3(x, stride=2), nn.MaxPool2d(3, 2, 1)),
    ],
    ids=["2x2", "2x2 ceil", "3x3/1", "3x3/2"],
)
def test_max_pool(size, pool, torch_pool):
    rng = np.random.default_rng(0)
    # All values differ: equal maxima share their gradient differently than in PyTorch.
    x = rng.permutation(2 * 3 * np.prod(size)).reshape(2, *size, 3).astype(np.float32) - 100
    torch_x = to_nchw(x).requires_grad_()
    want = torch_pool(torch_x)
    want.square().sum().backward()
    np.testing.assert_array_equal(pool(jnp.asarray(x)), want.detach().permute(0, 2, 3, 1))
    gradient = jax.grad(lambda x: (pool(x) ** 2).sum())(jnp.asarray(x))
    np.testing.assert_array_equal(gradient, torch_x.grad.permute(0, 2, 3, 1))


def test_batch_norm():
    module = nn.Sequential()
    module.add_module("norm", nn.BatchNorm2d(5, eps=1e-5, momentum=0.1))

    class Norm(linen.Module):
        @linen.compact
        def __call__(self, x, train):
            return BatchNorm(name="norm")(x, train)

    assert_same(Norm(), module, (3, 4, 5, 5))


def test_root_block():
    assert_same(RootBlock(8, Layers()), TorchRoot(8), (2, 10, 11, 3))


# The last two are extra blocks: 16 channels from 32 with stride 2, and 16 from 16 with stride 1.
@pytest.mark.parametrize(
    ("ins", "outs", "stride"), [(8, 8, 1), (8, 16, 2), (8, 16, 1), (16, 16, 2), (32, 16, 2)]
)
def test_residual_block(ins, outs, stride):
    block = BasicBlock(outs, stride, Layers())
    assert_same(block, TorchBasic(ins, outs, stride), (3, 9, 10, ins))


@pytest.mark.parametrize(("ins", "outs", "stride"), [(8, 8, 1), (8, 16, 2)])
def test_preactivation_block(ins, outs, stride):
    block = PreactivationBlock(outs, stride, Layers())
    assert_same(block, TorchPreactivation(ins, outs, stride), (3, 9, 10, ins))


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_prediction_level(norm):
    level = PredictionLevel(4, 5, Layers(norm=norm))
    assert_same(level, TorchLevel(8, 4, 5, norm == "batch"), (2, 5, 6, 8))


@pytest.mark.parametrize(
    ("preactivation", "head_norm"), [(False, "batch"), (True, "none")], ids=["post", "pre"]
)
def test_complete_network(make_config, preactivation, head_norm):
    # 72 px: maps of 9, 5, 3 and 3, so that each norm sees at least 4 × 9 values.
    config = make_config(
        depth=18,
        width=0.125,
        preactivation=preactivation,
        head_norm=head_norm,
        extra_strides=(2, 1),
    )
    anchors = (4, 6, 6, 4)
    model = build_model(config, 2, anchors)
    torch_model = TorchDetector(
        preactivation, head_norm == "batch", config.extra_strides, anchors, 3
    )
    assert_same_network(model, torch_model, (4, 72, 72, 3))
