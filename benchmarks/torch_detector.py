"""Root-ResNet SSD in PyTorch with its loss and update; `against_torch` compares speeds with it."""

from collections.abc import Callable, Sequence

import ml_collections
import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, relu, smooth_l1_loss

from scratchdet_jax.models.resnet import BLOCKS_PER_STAGE, STAGE_CHANNELS
from scratchdet_jax.training.optimizer import learning_rate

VERSION = torch.__version__
threads = torch.get_num_threads


def convolution(ins: int, outs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Makes a convolution without bias, and BatchNorm."""
    layer = nn.Conv2d(ins, outs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outs))


class Block(nn.Module):
    """ResNet's basic block."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(ins, outs, stride=stride)
        self.second = convolution(outs, outs)
        same = stride == 1 and ins == outs
        self.shortcut = nn.Identity() if same else convolution(ins, outs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps x [B, C, H, W] to [B, outs, ⌈H/stride⌉, ⌈W/stride⌉]."""
        y = self.second(relu(self.first(x), inplace=True))
        return relu(y + self.shortcut(x), inplace=True)


class RootResNetSSD(nn.Module):
    """Root-ResNet with basic blocks, ScratchDet's extra blocks and a normalised head."""

    def __init__(self, config: ml_collections.ConfigDict, anchors: Sequence[int], classes: int):
        super().__init__()
        self.classes = classes
        root = []
        for i in range(config.stem_convs):
            root += [convolution(STAGE_CHANNELS[0] if i else 3, STAGE_CHANNELS[0])]
            root += [nn.ReLU(inplace=True)]
        self.root = nn.Sequential(*root, nn.MaxPool2d(2))
        self.parts, ins = nn.ModuleList(), STAGE_CHANNELS[0]
        widths = []
        for count, outs, stride in zip(
            BLOCKS_PER_STAGE[config.depth], STAGE_CHANNELS, config.stage_strides, strict=True
        ):
            blocks = [Block(outs if i else ins, outs, 1 if i else stride) for i in range(count)]
            self.parts.append(nn.Sequential(*blocks))
            ins = outs
            widths.append(outs)
        for stride in config.extra_strides:
            self.parts.append(Block(ins, config.extra_channels, stride))
            ins = config.extra_channels
            widths.append(ins)
        self.first_source = len(widths) - len(anchors)
        pairs = list(zip(widths[self.first_source :], anchors, strict=True))
        self.class_predictors = nn.ModuleList(convolution(w, a * classes) for w, a in pairs)
        self.box_predictors = nn.ModuleList(convolution(w, a * 4) for w, a in pairs)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps images [B, 3, S, S] to logits [B, A, classes] and offsets [B, A, 4]."""
        x, sources = self.root(images), []
        for part in self.parts:
            x = part(x)
            sources.append(x)
        sources = sources[self.first_source :]

        def predict(predictors: nn.ModuleList, values: int) -> torch.Tensor:
            maps = [p(x).permute(0, 2, 3, 1) for p, x in zip(predictors, sources, strict=True)]
            return torch.cat([m.reshape(len(m), -1, values) for m in maps], 1)

        return predict(self.class_predictors, self.classes), predict(self.box_predictors, 4)


def multibox_loss(
    logits: torch.Tensor,
    offsets: torch.Tensor,
    labels: torch.Tensor,
    target_offsets: torch.Tensor,
    negative_ratio: float,
) -> torch.Tensor:
    """Computes the MultiBox loss over the number of positives; shapes as in `ops.losses`."""
    positive = labels > 0
    losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    losses = losses.view(labels.shape)
    count = positive.sum(1, keepdim=True)
    order = losses.detach().masked_fill(positive, -1.0).argsort(1, descending=True)
    wanted = (torch.arange(labels.shape[1]) < (negative_ratio * count).long()).expand_as(order)
    mined = torch.zeros_like(positive).scatter(1, order, wanted) & ~positive
    boxes = smooth_l1_loss(offsets[positive], target_offsets[positive], reduction="sum")
    return (losses[positive | mined].sum() + boxes) / count.sum().clamp(min=1)


def make_step(
    config: ml_collections.ConfigDict,
    threads: int,
    images: np.ndarray,
    labels: np.ndarray,
    target_offsets: np.ndarray,
    anchors: Sequence[int],
    classes: int,
) -> tuple[Callable[[], float], nn.Module]:
    """Makes the step of a detector with random weights, channels last, that returns its loss.

    Args:
        config: the recipe.
        threads: of PyTorch.
        images: normalised [B, S, S, 3].
        labels: targets [B, A], 0 = negative.
        target_offsets: [B, A, 4].
        anchors: in a cell of each source map.
        classes: with the background.

    Returns:
        The step, and its network.
    """
    torch.set_num_threads(threads)
    network = RootResNetSSD(config.model, anchors, classes).to(memory_format=torch.channels_last)
    network.train()
    settings = config.optimizer
    optimizer = torch.optim.SGD(
        network.parameters(),
        float(learning_rate(config)(0)),
        settings.momentum,
        weight_decay=settings.weight_decay,
    )
    # A copy: arrays that NumPy shares with JAX cannot be written.
    x = torch.tensor(images).permute(0, 3, 1, 2)
    targets = torch.tensor(labels).long(), torch.tensor(target_offsets)

    def step() -> float:
        optimizer.zero_grad()
        loss = multibox_loss(*network(x), *targets, config.loss.negative_ratio)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, network
