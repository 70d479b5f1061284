"""Bottlenecks, stems and VGG-16 compared with PyTorch, as in test_against_torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from scratchdet_jax.models.extras import ExtraLayers
from scratchdet_jax.models.layers import L2Norm, Layers
from scratchdet_jax.models.resnet import BasicBlock, Conv7Stem, PreactivationBlock, RootBlock
from scratchdet_jax.models.vgg import VGG16

torch = pytest.importorskip("torch")
nn, relu = torch.nn, torch.nn.functional.relu

from tests.models.torch_comparison import NETWORK_TOLERANCE, assert_same  # noqa: E402


class TorchBottleneck(nn.Module):
    def __init__(self, ins, inner, stride, preactivation):
        super().__init__()
        outs, self.preactivation = 4 * inner, preactivation
        shapes = ((ins, inner, 1, 1), (inner, inner, 3, stride), (inner, outs, 1, 1))
        for i, (a, b, kernel, s) in enumerate(shapes, 1):
            self.add_module(f"conv{i}", nn.Conv2d(a, b, kernel, s, kernel // 2, bias=False))
            self.add_module(f"norm{i}", nn.BatchNorm2d(a if preactivation else b))
        self.projects = stride != 1 or ins != outs
        if self.projects:
            self.projection = nn.Conv2d(ins, outs, 1, stride, bias=False)
            if not preactivation:
                self.projection_norm = nn.BatchNorm2d(outs)

    def forward(self, x):
        if self.preactivation:
            y = relu(self.norm1(x))
            shortcut = self.projection(y) if self.projects else x
            y = self.conv2(relu(self.norm2(self.conv1(y))))
            return self.conv3(relu(self.norm3(y))) + shortcut
        y = relu(self.norm2(self.conv2(relu(self.norm1(self.conv1(x))))))
        shortcut = self.projection_norm(self.projection(x)) if self.projects else x
        return relu(self.norm3(self.conv3(y)) + shortcut)


class TorchConvolutions(nn.Module):
    """A sequence of named convolutions, each with norm (or bias) and ReLU, then a pooling."""

    def __init__(self, convolutions, norms, pool):
        super().__init__()
        for i, (arguments, norm) in enumerate(zip(convolutions, norms, strict=True), 1):
            self.add_module(f"conv{i}", nn.Conv2d(*arguments, bias=norm is None))
            if norm:
                self.add_module(f"norm{i}", nn.BatchNorm2d(norm))
        self.count, self.pool = len(convolutions), pool

    def forward(self, x):
        for i in range(1, self.count + 1):
            x = getattr(self, f"conv{i}")(x)
            x = relu(getattr(self, f"norm{i}")(x) if hasattr(self, f"norm{i}") else x)
        return self.pool(x)


class TorchL2(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), 20.0))

    def forward(self, x):
        return nn.functional.normalize(x, dim=1) * self.weight[:, None, None]


class TorchVGG(nn.Module):
    """SSD's truncated VGG-16, narrow, with extra pairs of stride 2, stride 1 and 4×4."""

    blocks = ((2, 4), (2, 8), (3, 8), (3, 16), (3, 16))

    def __init__(self, norm):
        super().__init__()
        self.norm, ins = norm, 3
        for i, (count, outs) in enumerate(self.blocks, 1):
            for j in range(1, count + 1):
                self.add(f"conv{i}_{j}", ins, outs, 3, padding=1)
                ins = outs
        self.add("fc6", 16, 32, 3, padding=6, dilation=6)
        self.add("fc7", 32, 32, 1)
        if not norm:
            self.conv4_3_l2 = TorchL2(16)
        self.extras = []
        for i, (ins, squeeze, outs, kernel, stride, padding) in enumerate(
            ((32, 16, 32, 3, 2, 1), (32, 8, 16, 3, 1, 0), (16, 8, 16, 4, 1, 1)), 1
        ):
            pair = TorchConvolutions(
                ((ins, squeeze, 1), (squeeze, outs, kernel, stride, padding)),
                (squeeze, outs) if norm else (None, None),
                nn.Identity(),
            )
            self.add_module(f"extra{i}", pair)
            self.extras.append(f"extra{i}")

    def add(self, name, ins, outs, kernel, **options):
        self.add_module(name, nn.Conv2d(ins, outs, kernel, bias=not self.norm, **options))
        if self.norm:
            self.add_module(f"{name}_norm", nn.BatchNorm2d(outs))

    def layer(self, name, x):
        x = getattr(self, name)(x)
        return relu(getattr(self, f"{name}_norm")(x) if self.norm else x)

    def forward(self, x):
        sources, pool = [], nn.MaxPool2d(2, 2, ceil_mode=True)
        for i, (count, _) in enumerate(self.blocks, 1):
            for j in range(1, count + 1):
                x = self.layer(f"conv{i}_{j}", x)
            if i == 4:
                sources.append(x if self.norm else self.conv4_3_l2(x))
            x = pool(x) if i < 5 else nn.MaxPool2d(3, 1, 1)(x)
        x = self.layer("fc7", self.layer("fc6", x))
        sources.append(x)
        for name in self.extras:
            x = getattr(self, name)(x)
            sources.append(x)
        return tuple(sources)


def test_l2_norm():
    class Norm(linen.Module):
        @linen.compact
        def __call__(self, x, train):
            return L2Norm(name="norm")(x)

    module = nn.Sequential()
    module.add_module("norm", TorchL2(6))
    assert_same(Norm(), module, (2, 4, 5, 6))
    x = jnp.zeros((1, 2, 2, 6))
    variables = Norm().init(jax.random.key(0), x, train=False)
    np.testing.assert_array_equal(variables["params"]["norm"]["scale"], 20.0)
    # A cell of zeros: no division by zero, and a finite gradient.
    value, gradient = jax.value_and_grad(lambda x: Norm().apply(variables, x, False).sum())(x)
    assert value == 0 and np.isfinite(gradient).all()


@pytest.mark.parametrize("preactivation", [False, True], ids=["post", "pre"])
@pytest.mark.parametrize(("ins", "inner", "stride"), [(32, 8, 1), (16, 8, 1), (32, 16, 2)])
def test_bottleneck(ins, inner, stride, preactivation):
    kind = PreactivationBlock if preactivation else BasicBlock
    module = TorchBottleneck(ins, inner, stride, preactivation)
    assert_same(kind(inner, stride, Layers(), bottleneck=True), module, (3, 9, 10, ins))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("stem", ["root", "conv7"])
def test_stem(stem, stride):
    if stem == "root":
        flax_module = RootBlock(8, Layers(), 2, stride)
        shapes, pool = ((3, 8, 3, stride, 1), (8, 8, 3, 1, 1)), nn.MaxPool2d(2, 2)
    else:
        flax_module = Conv7Stem(8, Layers(), stride)
        shapes, pool = ((3, 8, 7, stride, 3),), nn.MaxPool2d(3, 2, 1)
    torch_module = TorchConvolutions(shapes, [8] * len(shapes), pool)
    assert_same(flax_module, torch_module, (3, 14, 17, 3))


def test_last_convolutions():
    shapes = ((8, 16, 3, 1, 1), (16, 16, 4, 1, 1))
    module = TorchConvolutions(shapes, (16, 16), nn.Identity())
    # 3×3 output maps, because 3 values are too few for a norm.
    assert_same(ExtraLayers(16, 16, 1, Layers(), kernel=4, squeeze_kernel=3), module, (3, 4, 4, 8))


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_vgg(norm):
    layers = Layers(norm=norm)
    trunk = VGG16((4, 8, 8, 16, 16), 32, 8, (2, 1), True, True, False, layers)
    # 97 px: 49, 25, 13, 7, rounded up; the extra pairs give 4, 2 and 1.
    module = TorchVGG(norm == "batch")
    assert_same(trunk, module, (4, 97, 97, 3), NETWORK_TOLERANCE)
