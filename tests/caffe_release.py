"""The authors' Caffe networks in PyTorch, written from their description; modules by our names."""

import torch
from torch import nn

relu = nn.functional.relu


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
