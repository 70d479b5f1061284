"""SSD on a trunk of source maps: a pair of 3×3 convolutions on each predicts classes and boxes."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scratchdet_jax.errors import UserError
from scratchdet_jax.models import vgg
from scratchdet_jax.models.layers import XAVIER_UNIFORM, Layers
from scratchdet_jax.models.resnet import (
    BLOCKS_PER_STAGE,
    STAGE_CHANNELS,
    ResNet,
    first_source_stage,
)


class PredictionLevel(nn.Module):
    """Predictors of one source map: 3×3 convolution and norm, without ReLU; or biased, no norm."""

    anchors: int
    classes: int
    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Maps x [B, h, w, c] to float32 logits [B, h·w·anchors, classes], offsets [B, …, 4]."""
        logits = self._predict(x, self.classes, train, "class")
        offsets = self._predict(x, 4, train, "box")
        return logits, offsets

    def _predict(self, x: jax.Array, values: int, train: bool, name: str) -> jax.Array:
        y = self.layers.convolve(x, self.anchors * values, 3, name=f"{name}_conv")
        # The norm's output is not rounded to the compute type first.
        normalization = dataclasses.replace(self.layers, dtype=jnp.float32)
        y = normalization.normalize(y, train, name=f"{name}_norm").astype(jnp.float32)
        return y.reshape(x.shape[0], -1, values)


class Head(nn.Module):
    """One `PredictionLevel` (level1 …) on each source map; levels share no parameters."""

    anchors_per_cell: tuple[int, ...]
    classes: int
    layers: Layers

    @nn.compact
    def __call__(self, sources: tuple[jax.Array, ...], train: bool) -> tuple[jax.Array, jax.Array]:
        """Maps source maps to logits [B, A, classes] and offsets [B, A, 4], float32.

        Anchors run over level, row, column, anchor in the cell (slowest to fastest).
        """
        predictions = [
            PredictionLevel(anchors, self.classes, self.layers, name=f"level{i}")(x, train)
            for i, (x, anchors) in enumerate(zip(sources, self.anchors_per_cell, strict=True), 1)
        ]
        logits, offsets = zip(*predictions, strict=True)
        return jnp.concatenate(logits, 1), jnp.concatenate(offsets, 1)


class SSD(nn.Module):
    """Single-shot detector (Liu et al. 2016): trunk and head.

    Parameters are named as the trunk names them, at the top level, and head/level1/class_conv,
    class_norm, box_conv, box_norm … Convolutions hold `kernel` [kh, kw, in, out] (and `bias`),
    norms `scale` and `bias`, and `mean` and `var` in the collection `batch_stats`.
    """

    trunk: nn.Module
    head: nn.Module

    def setup(self) -> None:
        """Lifts the trunk's parameters to the top level."""
        nn.share_scope(self, self.trunk)

    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Predicts classes and boxes.

        Args:
            images: [B, H, W, 3] float32, normalised.
            train: whether BatchNorm uses the statistics of the batch; they are recorded if
                `batch_stats` is mutable. The mapped axis must be bound then, if there is one.

        Returns:
            Class logits [B, A, C+1] and box offsets [B, A, 4], float32.
        """
        return self.head(self.trunk(images, train), train)

    def sources(self, images: jax.Array, train: bool) -> tuple[jax.Array, ...]:
        """Source maps [B, h, w, c] of the head, in the compute type, finest first."""
        return self.trunk(images, train)


def build_model(
    model_config: Any,
    num_classes: int,
    anchors_per_cell: tuple[int, ...],
    axis_name: str | None = None,
) -> SSD:
    """Builds the detector that `config.model` describes.

    Args:
        model_config: the fields of `config.model` , as attributes.
        num_classes: C, without the background.
        anchors_per_cell: one a source map: the backbone's, and one for each extra block.
        axis_name: mapped axis over which BatchNorm shares statistics in training.

    Returns:
        The module; initialise with `model.init({"params": key}, images, train=False)`.

    Raises:
        UserError: if a field has a value that cannot be built.
    """
    _check(model_config, num_classes, anchors_per_cell)
    layers = Layers(
        norm=model_config.norm,
        axis_name=axis_name,
        span=model_config.norm_span,
        decay=model_config.norm_decay,
        epsilon=model_config.norm_epsilon,
        dtype=jnp.dtype(model_config.dtype),
    )
    trunk = (
        _vgg16(model_config, layers)
        if model_config.backbone == "vgg16"
        else _resnet(model_config, layers)
    )
    head_layers = dataclasses.replace(
        layers, norm=model_config.head_norm, kernel_init=XAVIER_UNIFORM
    )
    head = Head(tuple(anchors_per_cell), num_classes + 1, head_layers)
    return SSD(trunk, head)


def _resnet(config: Any, layers: Layers) -> ResNet:
    return ResNet(
        depth=config.depth,
        stem=config.stem,
        stem_convs=config.stem_convs,
        stem_stride=config.stem_stride,
        stage_channels=tuple(scale_channels(c, config.width) for c in STAGE_CHANNELS),
        extra_channels=scale_channels(config.extra_channels, config.width),
        extra_strides=tuple(config.extra_strides),
        last_convolutions=config.last_convolutions,
        preactivation=config.preactivation,
        layers=layers,
    )


def _vgg16(config: Any, layers: Layers) -> vgg.VGG16:
    return vgg.VGG16(
        block_channels=tuple(scale_channels(c, config.width) for _, c in vgg.BLOCKS),
        fc_channels=scale_channels(vgg.FC_CHANNELS, config.width),
        extra_channels=scale_channels(config.extra_channels, config.width),
        extra_strides=tuple(config.extra_strides),
        last_convolutions=config.last_convolutions,
        layers=layers,
    )


def backbone_name(config: Any) -> str:
    """How `config.model`'s backbone is called, such as "Root-ResNet-34" or "VGG-16 x 0.5"."""
    if config.backbone == "vgg16":
        name = "VGG-16"
    else:
        name = f"{'Root-' if config.stem == 'root' else ''}ResNet-{config.depth}"
        name += " (stem of stride 2)" if config.stem == "root" and config.stem_stride == 2 else ""
        name += " (stem of stride 1)" if config.stem != "root" and config.stem_stride == 1 else ""
    return name if config.width == 1 else f"{name} x {config.width:g}"


def _backbone_sources(config: Any) -> int:
    """Source maps that come from the backbone; the extra blocks add one each."""
    if config.backbone == "vgg16":
        return vgg.STAGE_SOURCES
    return len(STAGE_CHANNELS) - first_source_stage(config.stem_stride) + 1


def feature_sizes(model: SSD, image_size: int) -> tuple[tuple[int, int], ...]:
    """Heights and widths of the source maps of an image_size × image_size image; computes nothing.

    Raises:
        UserError: if the image is too small for the network.
    """
    if image_size < 2:
        raise UserError(f"config image size {image_size} is too small: use at least 2 pixels.")
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    maps, _ = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False, method="sources"),
        images,
    )
    sizes = tuple(x.shape[1:3] for x in maps)
    if min(map(min, sizes)) < 1:
        raise UserError(
            f"config image size {image_size} is too small: the last source map of this network "
            "would be empty; use a larger one, or other config.model.extra_strides."
        )
    return sizes


def scale_channels(channels: int, width: float) -> int:
    """Channels × width, rounded to the nearest multiple of 8 (halves up), at least 8."""
    return max(8, int(channels * width / 8 + 0.5) * 8)


def _check(config: Any, num_classes: int, anchors_per_cell: tuple[int, ...]) -> None:
    """Raises UserError for the first field that cannot be built, naming it."""
    choices = {
        "backbone": ("resnet", "vgg16"),
        "stem": ("root", "conv7"),
        "stem_stride": (1, 2),
        "depth": tuple(BLOCKS_PER_STAGE),
        "norm": ("batch", "none"),
        "head_norm": ("batch", "none"),
        "dtype": ("float32", "bfloat16"),
    }
    for field, allowed in choices.items():
        if getattr(config, field) not in allowed:
            wanted = " or ".join(repr(value) for value in allowed)
            raise UserError(f"config.model.{field} is {getattr(config, field)!r}: use {wanted}.")
    strides = tuple(config.extra_strides)
    conditions = {
        "stem_convs": (config.stem_convs >= 1, "at least 1 convolution"),
        "preactivation": (
            not (config.preactivation and config.backbone == "vgg16"),
            "False: VGG-16 has no residual units",
        ),
        "width": (config.width > 0, "a number above 0"),
        "extra_channels": (config.extra_channels > 0, "a number above 0"),
        "extra_strides": (all(s in (1, 2) for s in strides), "strides of 1 or 2"),
        "norm_span": (config.norm_span >= 0, "0 (the whole batch) or a number of images"),
        "norm_decay": (0 <= config.norm_decay < 1, "a number from 0 to below 1"),
        "norm_epsilon": (config.norm_epsilon > 0, "a number above 0"),
    }
    for field, (holds, wanted) in conditions.items():
        if not holds:
            raise UserError(f"config.model.{field} is {getattr(config, field)!r}: use {wanted}.")
    if num_classes < 1:
        raise UserError(f"The data has {num_classes} classes: at least 1 is needed.")
    from_backbone = _backbone_sources(config) + bool(config.last_convolutions)
    if len(anchors_per_cell) != from_backbone + len(strides):
        raise UserError(
            f"The anchors have {len(anchors_per_cell)} levels but config.model.extra_strides "
            f"{strides} gives {from_backbone + len(strides)} source maps: use "
            f"{max(len(anchors_per_cell) - from_backbone, 0)} extra strides or other anchors."
        )
