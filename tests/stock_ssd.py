"""SSD with VGG-16 in PyTorch, by the names of three programs, from their descriptions.

Their anchors and their decoding of boxes are computed one by one.
"""

import math

import torch
from torch import nn

ANCHORS = {300: (4, 6, 6, 6, 4, 4), 512: (4, 6, 6, 6, 6, 4, 4)}
MAPS = {300: (38, 19, 10, 5, 3, 1), 512: (64, 32, 16, 8, 4, 2, 1)}
STEPS = {300: (8, 16, 32, 64, 100, 300), 512: (8, 16, 32, 64, 128, 256, 512)}
RATIOS = {4: (2,), 6: (2, 3)}
SIZES = {  # least sizes in pixels, and one more
    "voc300": (30, 60, 111, 162, 213, 264, 315),
    "coco300": (21, 45, 99, 153, 207, 261, 315),
    "coco512": (20, 51, 133, 215, 296, 378, 460, 542),
}


class L2Norm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), 20.0))

    def forward(self, x):
        length = x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10
        return x / length * self.weight[:, None, None]


def vgg(width, all_poolings_ceil):
    """conv1_1 … conv5_3, pool5, fc6 and fc7 with their ReLUs; all numbered as in one Sequential."""
    layers, ins = [], 3
    for block, (count, outs) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), 1):
        for _ in range(count):
            layers += [nn.Conv2d(ins, outs // width, 3, padding=1), nn.ReLU()]
            ins = outs // width
        if block < 5:
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=all_poolings_ceil or block == 3))
    layers.append(nn.MaxPool2d(3, 1, 1))
    layers += [nn.Conv2d(ins, 1024 // width, 3, padding=6, dilation=6), nn.ReLU()]
    return [*layers, nn.Conv2d(1024 // width, 1024 // width, 1), nn.ReLU()]


def extras(width, size):
    """Pairs of convolutions: 1×1, then 3×3 of stride 2 or unpadded, or the last one at 512."""
    shapes = [(256, 512, 3, 2, 1), (128, 256, 3, 2, 1)]
    shapes += [(128, 256, 3, 1, 0)] * 2 if size == 300 else [(128, 256, 3, 2, 1)] * 2
    shapes += [] if size == 300 else [(128, 256, 4, 1, 1)]
    pairs, ins = [], 1024 // width
    for squeeze, outs, kernel, stride, padding in shapes:
        first = nn.Conv2d(ins, squeeze // width, 1)
        ins = outs // width
        pairs.append((first, nn.Conv2d(squeeze // width, ins, kernel, stride, padding)))
    return pairs


def predictors(width, size, values):
    widths = [512, 1024, 512] + [256] * (len(ANCHORS[size]) - 3)
    return [
        nn.Conv2d(w // width, anchors * values, 3, padding=1)
        for w, anchors in zip(widths, ANCHORS[size], strict=True)
    ]


class SSD(nn.Module):
    """Images [B, 3, S, S] → logits [B, A, outputs] and offsets [B, A, 4] of (x, y, w, h).

    `width` divides the numbers of channels.
    """

    def __init__(self, program, outputs, size=300, width=1):
        super().__init__()
        layers = vgg(width, all_poolings_ceil=program.startswith("mmdetection"))
        pairs, norm = extras(width, size), L2Norm(512 // width)
        classes, boxes = predictors(width, size, outputs), predictors(width, size, 4)
        # Not attributes: the names come from what `program` registers.
        self.parts = [(layers, pairs, norm, classes, boxes, outputs)]
        getattr(self, f"_register_{program}")(layers, pairs, norm, classes, boxes)

    def _register_ssd_pytorch(self, layers, pairs, norm, classes, boxes):
        self.vgg = nn.ModuleList(layers)
        self.L2Norm = norm
        self.extras = nn.ModuleList(layer for pair in pairs for layer in pair)
        self.loc, self.conf = nn.ModuleList(boxes), nn.ModuleList(classes)

    def _register_mmdetection(self, layers, pairs, norm, classes, boxes):
        self.backbone, self.neck, self.bbox_head = nn.Module(), nn.Module(), nn.Module()
        self.backbone.features = nn.Sequential(*layers)
        self.neck.l2_norm = norm
        blocks = [nn.Sequential(*[nn.Module(), nn.Module()]) for _ in pairs]
        for block, pair in zip(blocks, pairs, strict=True):
            block[0].conv, block[1].conv = pair
        self.neck.extra_layers = nn.ModuleList(blocks)
        self.bbox_head.cls_convs = nn.ModuleList(nn.Sequential(layer) for layer in classes)
        self.bbox_head.reg_convs = nn.ModuleList(nn.Sequential(layer) for layer in boxes)

    def _register_mmdetection_before_2_14(self, layers, pairs, norm, classes, boxes):
        self.backbone, self.bbox_head = nn.Module(), nn.Module()
        self.backbone.features = nn.Sequential(*layers)
        self.backbone.extra = nn.ModuleList(layer for pair in pairs for layer in pair)
        self.backbone.l2_norm = norm
        self.bbox_head.cls_convs = nn.ModuleList(classes)
        self.bbox_head.reg_convs = nn.ModuleList(boxes)

    def _register_torchvision(self, layers, pairs, norm, classes, boxes):
        self.backbone, self.head = nn.Module(), nn.Module()
        self.backbone.scale_weight = norm.weight
        self.backbone.features = nn.Sequential(*layers[:23])
        trunk = nn.Sequential(*layers[23:30], nn.Sequential(*layers[30:]))
        with_relus = [nn.Sequential(a, nn.ReLU(), b, nn.ReLU()) for a, b in pairs]
        self.backbone.extra = nn.ModuleList([trunk, *with_relus])
        for name, part in (("classification_head", classes), ("regression_head", boxes)):
            self.head.add_module(name, nn.Module())
            getattr(self.head, name).module_list = nn.ModuleList(part)

    def forward(self, x):
        layers, pairs, norm, classes, boxes, outputs = self.parts[0]
        sources = []
        for number, layer in enumerate(layers):
            x = layer(x)
            sources += [norm(x)] if number == 22 else []  # conv4_3 and its ReLU
        sources.append(x)
        for first, second in pairs:
            x = torch.relu(second(torch.relu(first(x))))
            sources.append(x)

        def run(heads, values):
            maps = [head(x).permute(0, 2, 3, 1) for head, x in zip(heads, sources, strict=True)]
            return torch.cat([m.reshape(len(m), -1, values) for m in maps], 1)

        return run(classes, outputs), run(boxes, 4)


def anchors_of(name, clipped):
    """Anchors (x, y, w, h) over the image size, centre first, computed one by one."""
    size, sizes, found = int(name[-3:]), SIZES[name], []
    for level, count in enumerate(ANCHORS[size]):
        low, high = sizes[level], sizes[level + 1]
        shapes = [(low, low), (math.sqrt(low * high),) * 2]
        for ratio in RATIOS[count]:
            root = math.sqrt(ratio)
            shapes += [(low * root, low / root), (low / root, low * root)]
        step = STEPS[size][level]
        for row in range(MAPS[size][level]):
            for column in range(MAPS[size][level]):
                for shape in shapes:
                    w, h = (min(side, size) if clipped else side for side in shape)
                    box = (column + 0.5) * step, (row + 0.5) * step, w, h
                    found.append([value / size for value in box])
    return found


def decode(offsets, anchors):
    """Boxes (x1, y1, x2, y2) over the image size, from offsets (x, y, w, h)."""
    found = []
    for (dx, dy, dw, dh), (x, y, w, h) in zip(offsets, anchors, strict=True):
        x, y = x + 0.1 * dx * w, y + 0.1 * dy * h
        w, h = w * math.exp(0.2 * dw), h * math.exp(0.2 * dh)
        found.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    return found
