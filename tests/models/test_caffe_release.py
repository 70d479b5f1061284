"""The authors' Caffe networks against PyTorch, layer by layer, written from their description.

Root-ResNet-34: three 3×3 convolutions, 2×2 pooling, pre-activation units whose first one has no
norm before its first convolution; source maps are the outputs of the last convolution of stages 3
and 4 and of four pre-activation extra blocks, before the addition. Root-ResNet-18: a norm before
the first unit too, and SSD's pairs as extra layers. VGG-16: norm and ReLU also after each pooling.
All are narrow here; depths, strides and order of layers are the published ones.
"""

import jax
import numpy as np
import pytest

from scratchdet_jax import cli
from scratchdet_jax.models import build_model
from scratchdet_jax.ops.anchors import anchors_per_cell
from tests.models.shapes import source_shapes

torch = pytest.importorskip("torch")
nn, relu = torch.nn, torch.nn.functional.relu

from tests.models.torch_comparison import (  # noqa: E402
    NETWORK_TOLERANCE,
    assert_near,
    randomised,
    to_nchw,
    torch_tensors,
)


def convolution(ins, outs, kernel, stride=1, padding=None, dilation=1):
    padding = dilation * (kernel // 2) if padding is None else padding
    return nn.Conv2d(ins, outs, kernel, stride, padding, dilation, bias=False)


class Unit(nn.Module):
    """Pre-activation unit; gives the sum and the output of the last convolution."""

    def __init__(self, ins, outs, stride, activated=False):
        super().__init__()
        if not activated:
            self.norm1 = nn.BatchNorm2d(ins)
        self.conv1 = convolution(ins, outs, 3, stride)
        self.norm2 = nn.BatchNorm2d(outs)
        self.conv2 = convolution(outs, outs, 3)
        if stride != 1 or ins != outs:
            self.projection = convolution(ins, outs, 1, stride)

    def forward(self, x):
        y = relu(self.norm1(x)) if hasattr(self, "norm1") else x
        shortcut = self.projection(y) if hasattr(self, "projection") else x
        y = self.conv2(relu(self.norm2(self.conv1(y))))
        return y + shortcut, y


class Pair(nn.Module):
    """SSD's extra layers: 1×1, then 3×3; gives the activated map and the bare convolution."""

    def __init__(self, ins, inner, outs, stride):
        super().__init__()
        self.conv1, self.norm1 = convolution(ins, inner, 1), nn.BatchNorm2d(inner)
        self.conv2 = convolution(inner, outs, 3, stride, padding=1 if stride == 2 else 0)
        self.norm2 = nn.BatchNorm2d(outs)

    def forward(self, x):
        y = self.conv2(relu(self.norm1(self.conv1(x))))
        return relu(self.norm2(y)), y


class RootResNet(nn.Module):
    """Root-ResNet-34 with pre-activation extras, or Root-ResNet-18 with SSD's pairs."""

    def __init__(self, depth, width):
        super().__init__()
        self.root, ins, c = nn.Module(), 3, width
        for i in (1, 2, 3):
            self.root.add_module(f"conv{i}", convolution(ins, c, 3))
            self.root.add_module(f"norm{i}", nn.BatchNorm2d(c))
            ins = c
        counts = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}[depth]
        for i, (count, factor) in enumerate(zip(counts, (1, 2, 4, 8), strict=True), 1):
            stage = nn.Module()
            for j in range(count):
                stride = 2 if j == 0 and i > 1 else 1
                activated = depth == 34 and i == 1 and j == 0
                stage.add_module(f"block{j + 1}", Unit(ins, factor * c, stride, activated))
                ins = factor * c
            self.add_module(f"stage{i}", stage)
        self.depth = depth
        if depth == 34:
            for i, stride in enumerate((2, 2, 1, 1), 1):
                self.add_module(f"extra{i}", Unit(ins, 2 * c, stride))
                ins = 2 * c
            return
        self.source4_norm = nn.BatchNorm2d(ins)
        pairs = ((4, 8, 2), (2, 4, 2), (2, 4, 1), (2, 4, 1))
        for i, (inner, outs, stride) in enumerate(pairs, 1):
            self.add_module(f"extra{i}", Pair(ins, inner * c, outs * c, stride))
            ins = outs * c

    def forward(self, x):
        for i in (1, 2, 3):
            layer = self.root
            x = relu(getattr(layer, f"norm{i}")(getattr(layer, f"conv{i}")(x)))
        x, sources = nn.functional.max_pool2d(x, 2, 2), []
        for i in (1, 2, 3, 4):
            for block in getattr(self, f"stage{i}").children():
                x, last = block(x)
            if i >= 3:
                sources.append(last)
        if self.depth == 18:
            x = relu(self.source4_norm(x))
        for i in (1, 2, 3, 4):
            x, last = getattr(self, f"extra{i}")(x)
            sources.append(last)
        return sources


class VGG(nn.Module):
    """VGG-16 with BatchNorm as released; Caffe rounds the poolings up."""

    def __init__(self, width, strides=(2, 2, 1, 1)):
        super().__init__()
        ins, self.blocks = 3, ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))
        for i, (count, factor) in enumerate(self.blocks, 1):
            for j in range(1, count + 1):
                self.layer(f"conv{i}_{j}", convolution(ins, factor * width, 3))
                ins = factor * width
            self.add_module(f"pool{i}_norm", nn.BatchNorm2d(ins))
        self.layer("fc6", convolution(ins, 16 * width, 3, dilation=6))
        self.layer("fc7", convolution(16 * width, 16 * width, 1))
        ins = 16 * width
        for i, stride in enumerate(strides, 1):
            inner, outs = (4, 8) if i == 1 else (2, 4)
            self.add_module(f"extra{i}", Pair(ins, inner * width, outs * width, stride))
            ins = outs * width

    def layer(self, name, module):
        self.add_module(name, module)
        self.add_module(f"{name}_norm", nn.BatchNorm2d(module.out_channels))

    def apply_layer(self, name, x):
        return relu(getattr(self, f"{name}_norm")(getattr(self, name)(x)))

    def forward(self, x):
        sources = []
        for i, (count, _) in enumerate(self.blocks, 1):
            for j in range(1, count + 1):
                x = self.apply_layer(f"conv{i}_{j}", x)
            if i == 4:
                sources.append(x)
            last = i == 5
            pool = nn.MaxPool2d(3, 1, 1) if last else nn.MaxPool2d(2, 2, ceil_mode=True)
            x = relu(getattr(self, f"pool{i}_norm")(pool(x)))
        x = self.apply_layer("fc7", self.apply_layer("fc6", x))
        sources.append(x)
        for i in (1, 2, 3, 4):
            x, _ = getattr(self, f"extra{i}")(x)
            sources.append(x)
        return sources


class Predictors(nn.Module):
    def __init__(self, ins, anchors, classes, norm):
        super().__init__()
        self.norm = norm
        for name, outs in (("class", anchors * classes), ("box", anchors * 4)):
            self.add_module(f"{name}_conv", nn.Conv2d(ins, outs, 3, 1, 1, bias=not norm))
            if norm:
                self.add_module(f"{name}_norm", nn.BatchNorm2d(outs, eps=1e-3))

    def forward(self, x, name, values):
        y = getattr(self, f"{name}_conv")(x)
        y = getattr(self, f"{name}_norm")(y) if self.norm else y
        return y.permute(0, 2, 3, 1).reshape(len(x), -1, values)


class Detector(nn.Module):
    """A trunk and its head; the trunk's modules are found at the top level."""

    def __init__(self, trunk, channels, anchors, classes, norm):
        super().__init__()
        self.trunk, self.classes = trunk, classes
        for name, module in trunk.named_children():
            self.add_module(name, module)
        self.head = nn.Module()
        for i, (ins, count) in enumerate(zip(channels, anchors, strict=True), 1):
            self.head.add_module(f"level{i}", Predictors(ins, count, classes, norm))

    def forward(self, x):
        sources = self.trunk(x)
        levels = list(zip(sources, self.head.children(), strict=True))
        logits = torch.cat([level(x, "class", self.classes) for x, level in levels], 1)
        offsets = torch.cat([level(x, "box", 4) for x, level in levels], 1)
        return logits, offsets


CLASSES = 4
NETWORKS = {  # recipe → (trunk, channels of the sources in full width, BatchNorm in the head)
    "configs/caffe_release/voc300.py": (
        lambda width: RootResNet(34, width),
        (256, 512, 128, 128, 128, 128),
        False,
    ),
    "configs/caffe_release/coco300.py": (
        lambda width: RootResNet(34, width),
        (256, 512, 128, 128, 128, 128),
        True,
    ),
    "configs/first_layers.py:root_stride1": (
        lambda width: RootResNet(18, width),
        (256, 512, 512, 256, 256, 256),
        True,
    ),
    "configs/bn_ablation.py:both_0.05": (VGG, (512, 1024, 512, 256, 256, 256), True),
}


def recorded(torch_module, x):
    """The output of every convolution and norm, by name, then the results."""
    found = {}

    def record(name):
        def hook(module, inputs, output):
            found[name] = output.detach()

        return hook

    hooks = [
        module.register_forward_hook(record(name.removeprefix("trunk.")))
        for name, module in torch_module.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    result = torch_module(x)
    for hook in hooks:
        hook.remove()
    return found, result


@pytest.mark.parametrize("recipe", NETWORKS)
def test_every_convolution_agrees(recipe):
    make_trunk, channels, norm = NETWORKS[recipe]
    config = cli.load_recipe(recipe)
    assert config.model.norm_decay == 0.999
    config.model.width = 0.125
    anchors = anchors_per_cell(config.anchors.aspect_ratios)
    model = build_model(config.model, CLASSES - 1, anchors)
    full = build_model(cli.load_recipe(recipe).model, 20, anchors)
    assert [shape[2] for shape in source_shapes(full, 300)] == list(channels)

    size = 300 if "vgg" in config.model.backbone else 160
    if config.model.extras == "plain":
        size = 300  # the last two maps need it
    x = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    variables = randomised(shapes, 0)
    narrow = [channel // 8 for channel in channels]
    torch_module = Detector(make_trunk(8), narrow, anchors, CLASSES, norm)
    for _, leaf, tensor in torch_tensors(torch_module, variables):
        tensor.copy_(torch.from_numpy(np.array(leaf)))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert parameters == sum(p.numel() for p in torch_module.parameters())

    for train in (False, True):
        torch_module.train(train)
        with torch.no_grad():
            convolutions, want = recorded(torch_module, to_nchw(x))
        got, state = jax.jit(
            lambda v, x, train=train: model.apply(
                v,
                x,
                train=train,
                mutable=["intermediates", "batch_stats"],
                capture_intermediates=lambda module, _: type(module).__name__ == "Convolution",
            )
        )(variables, x)
        ours = {
            ".".join(entry.key for entry in path[:-2]): leaf
            for path, leaf in jax.tree.leaves_with_path(state["intermediates"])
        }
        assert ours.keys() == convolutions.keys()
        for name, value in convolutions.items():
            assert_near(ours[name], value.permute(0, 2, 3, 1), NETWORK_TOLERANCE, name)
        for a, b in zip(got, want, strict=True):
            assert_near(a, b, NETWORK_TOLERANCE, "head")


@pytest.mark.parametrize(
    "row", ["conv7_stride2", "conv7_stride2_no_pool", "root_stride2", "conv7_stride1"]
)
def test_the_head_sees_the_same_maps_with_all_first_layers(row):
    def shapes(row):
        config = cli.load_recipe(f"configs/first_layers.py:{row}")
        anchors = anchors_per_cell(config.anchors.aspect_ratios)
        return source_shapes(build_model(config.model, 20, anchors), 300)

    assert shapes(row) == shapes("root_stride1")
    assert [h for h, _, _ in shapes(row)] == [38, 19, 10, 5, 3, 1]
