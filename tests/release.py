"""The authors' mmdetection release in PyTorch, written from its description, and its boxes."""

import math

import torch
from torch import nn

ANCHORS_300, ANCHORS_512 = (4, 6, 6, 6, 4, 4), (4, 6, 6, 6, 6, 4, 4)


def norm_of(channels):
    return nn.BatchNorm2d(channels)


class Block(nn.Module):
    """conv, BN, ReLU, conv, BN, shortcut (1×1 convolution and BN if the shape changes), ReLU."""

    def __init__(self, ins, outs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.bn1 = norm_of(outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.bn2 = norm_of(outs)
        if stride != 1 or ins != outs:
            self.downsample = nn.Sequential(
                nn.Conv2d(ins, outs, 1, stride, bias=False), norm_of(outs)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class Backbone(nn.Module):
    """Root block, stages 1…4 and extra blocks 5…8; two more convolutions at 512."""

    def __init__(self, strides, last, base=64):
        super().__init__()
        for i, (ins, outs) in enumerate(((3, base), (base, base), (base, base)), 1):
            self.convolution(i, ins, outs, 3)
        ins = base
        widths, counts = (1, 2, 4, 8, 2, 2, 2, 2), (3, 4, 6, 3, 1, 1, 1, 1)
        widths = [factor * base for factor in widths]
        for i, (outs, count, stride) in enumerate(zip(widths, counts, strides, strict=True), 1):
            blocks = [Block(ins, outs, stride)]
            blocks += [Block(outs, outs, 1) for _ in range(count - 1)]
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
            ins = outs
        self.last = last
        if last:
            self.convolution(4, 2 * base, 2 * base, 3)
            self.convolution(5, 2 * base, 2 * base, 4)

    def convolution(self, number, ins, outs, kernel):
        self.add_module(f"conv{number}", nn.Conv2d(ins, outs, kernel, 1, 1, bias=False))
        self.add_module(f"bn{number}", norm_of(outs))

    def layer(self, number, x):
        return torch.relu(getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x)))

    def forward(self, x):
        x = nn.functional.max_pool2d(self.layer(3, self.layer(2, self.layer(1, x))), 2, 2)
        sources = []
        for i in range(1, 9):
            x = getattr(self, f"layer{i}")(x)
            sources += [x] if i >= 3 else []
        return [*sources, self.layer(5, self.layer(4, x))] if self.last else sources


class Head(nn.Module):
    """For each map, a 3×3 convolution and BN for the boxes, and another for the classes."""

    def __init__(self, widths, anchors, classes):
        super().__init__()
        self.classes = classes

        def predictors(values):
            return nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(w, a * values, 3, padding=1, bias=False), norm_of(a * values)
                )
                for w, a in zip(widths, anchors, strict=True)
            )

        self.reg_convs, self.cls_convs = predictors(4), predictors(classes)

    def forward(self, sources):
        def run(predictors, values):
            maps = [p(x).permute(0, 2, 3, 1) for p, x in zip(predictors, sources, strict=True)]
            return torch.cat([m.reshape(len(m), -1, values) for m in maps], 1)

        return run(self.cls_convs, self.classes), run(self.reg_convs, 4)


class Release(nn.Module):
    """ScratchDet-300 or -512: images [B, 3, S, S] → logits [B, A, C + 1], offsets (x, y, w, h).

    `base` are the channels of the root block, 64 as published; all others follow it.
    """

    def __init__(self, size, classes=81, base=64):
        super().__init__()
        strides = (1, 2, 2, 2, 2, 2, 2, 2 if size == 512 else 1)
        self.backbone = Backbone(strides, size == 512, base)
        anchors = ANCHORS_512 if size == 512 else ANCHORS_300
        widths = (4 * base, 8 * base, *[2 * base] * (len(anchors) - 2))
        self.bbox_head = Head(widths, anchors, classes)

    def forward(self, images):
        return self.bbox_head(self.backbone(images))


def randomise(model, images, seed):
    """Sets random weights, and BatchNorm statistics close to those of `images`."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(0, math.sqrt(2 / fan_in), generator=generator)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.1, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.0, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            noise = torch.empty_like(module.running_var)
            # A channel with little variance would amplify earlier rounding.
            module.running_var.clamp_(min=module.running_var.mean() / 4)
            module.running_mean += noise.normal_(0, 0.2, generator=generator) * torch.sqrt(
                module.running_var
            )
            module.running_var *= noise.uniform_(1.0, 2.0, generator=generator)
    return model.eval()


def anchors_of(sizes, maps, steps, ratios):
    """The release's anchors (x1, y1, x2, y2): first and last pixel inside, computed one by one."""
    boxes = []
    for (low, high), cells, step, level in zip(sizes, maps, steps, ratios, strict=True):
        shapes = [(low, low), (math.sqrt(low * high),) * 2]
        for ratio in level:
            root = math.sqrt(ratio)
            shapes += [(low * root, low / root), (low / root, low * root)]
        centre = (step - 1) / 2
        for row in range(cells):
            for column in range(cells):
                for w, h in shapes:
                    first = round(centre - (w - 1) / 2), round(centre - (h - 1) / 2)
                    last = round(centre + (w - 1) / 2), round(centre + (h - 1) / 2)
                    dx, dy = column * step, row * step
                    boxes.append((first[0] + dx, first[1] + dy, last[0] + dx, last[1] + dy))
    return boxes


def decode(offsets, boxes):
    """The release's boxes (x1, y1, x2, y2): first and last pixel, from offsets (x, y, w, h)."""
    found = []
    for (dx, dy, dw, dh), (x1, y1, x2, y2) in zip(offsets, boxes, strict=True):
        w, h = x2 - x1 + 1, y2 - y1 + 1
        x = (x1 + x2) / 2 + 0.1 * dx * w
        y = (y1 + y2) / 2 + 0.1 * dy * h
        w, h = w * math.exp(0.2 * dw), h * math.exp(0.2 * dh)
        found.append((x - w / 2 + 0.5, y - h / 2 + 0.5, x + w / 2 - 0.5, y + h / 2 - 0.5))
    return found
