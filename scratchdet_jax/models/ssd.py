"""SSD: a pair of 3×3 convolutions on each source map of a backbone predicts classes and boxes."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scratchdet_jax.errors import UserError, plural
from scratchdet_jax.models import resnet, vgg
from scratchdet_jax.models.backbone import Backbone, Check, imported, one_of
from scratchdet_jax.models.layers import (
    CAFFE_GAUSSIAN,
    CAFFE_XAVIER,
    KAIMING_NORMAL,
    XAVIER_UNIFORM,
    Layers,
    packs,
)
from scratchdet_jax.models.norm_groups import check_norm_span
from scratchdet_jax.models.packing import unpack

BACKBONES: dict[str, Backbone] = {"resnet": resnet.BACKBONE, "vgg16": vgg.BACKBONE}
"""The package's backbones by the value of `config.model.backbone`; others have an import path."""


class PredictionLevel(nn.Module):
    """Predictors of one source map: 3×3 convolutions, normalised or biased, without ReLU."""

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
        y = unpack(normalization.normalize(y, train, name=f"{name}_norm")).astype(jnp.float32)
        return y.reshape(x.shape[0], -1, values)


class Head(nn.Module):
    """One `PredictionLevel` (level1 …) per source map; levels share no parameters."""

    anchors_per_cell: tuple[int, ...]
    classes: int
    layers: Layers

    @nn.compact
    def __call__(self, sources: tuple[jax.Array, ...], train: bool) -> tuple[jax.Array, jax.Array]:
        """Maps source maps to logits [B, A, classes] and offsets [B, A, 4], float32.

        Anchors are ordered by level, row, column, anchor in the cell (slowest to fastest).
        """
        predictions = [
            PredictionLevel(anchors, self.classes, self.layers, name=f"level{i}")(x, train)
            for i, (x, anchors) in enumerate(zip(sources, self.anchors_per_cell, strict=True), 1)
        ]
        logits, offsets = zip(*predictions, strict=True)
        return jnp.concatenate(logits, 1), jnp.concatenate(offsets, 1)


class SSD(nn.Module):
    """Single-shot detector (Liu et al. 2016): trunk (backbone with extra blocks) and head.

    The trunk's parameters are at the top level under the trunk's own names; the head's are
    head/level1/class_conv, class_norm, box_conv, box_norm … Convolutions hold `kernel`
    [kh, kw, in, out] (and `bias`); norms hold `scale` and `bias`, and in the collection
    `batch_stats` `mean` and `var`.
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
            train: whether BatchNorm uses the statistics of the batch; if `batch_stats` is mutable,
                they are recorded. The mapped axis, if there is one, must then be bound.

        Returns:
            Class logits [B, A, C+1] and box offsets [B, A, 4], float32.
        """
        return self.head(self.trunk(images, train), train)

    def sources(self, images: jax.Array, train: bool) -> tuple[jax.Array, ...]:
        """Returns the head's source maps [B, h, w, c], in the compute type, finest first."""
        return tuple(unpack(x) for x in self.trunk(images, train))


def build_model(
    model_config: Any,
    num_classes: int,
    anchors_per_cell: tuple[int, ...],
    axis_name: str | None = None,
) -> SSD:
    """Builds the detector that `config.model` describes.

    `num_classes` is C, without the background. `anchors_per_cell` has one entry per source map,
    those of the extra blocks included. `axis_name` is the mapped axis over which BatchNorm shares
    statistics in training.

    Returns:
        The module; initialise it with `model.init({"params": key}, images, train=False)`.

    Raises:
        UserError: a field has a value that cannot be built.
    """
    backbone = _backbone(model_config)
    _check(model_config, backbone, num_classes, anchors_per_cell)
    caffe = model_config.initializer == "caffe"
    layers = Layers(
        norm=model_config.norm,
        axis_name=axis_name,
        span=model_config.norm_span,
        decay=model_config.norm_decay,
        epsilon=model_config.norm_epsilon,
        dtype=jnp.dtype(model_config.dtype),
        kernel_init=CAFFE_XAVIER if caffe else KAIMING_NORMAL,
        packed=packs(model_config.layout),
    )
    head_layers = dataclasses.replace(
        layers,
        norm=model_config.head_norm,
        epsilon=model_config.head_norm_epsilon or model_config.norm_epsilon,
        kernel_init=(CAFFE_GAUSSIAN if model_config.head_norm == "batch" else CAFFE_XAVIER)
        if caffe
        else XAVIER_UNIFORM,
    )
    head = Head(tuple(anchors_per_cell), num_classes + 1, head_layers)
    trunk_layers = dataclasses.replace(layers, packed=layers.packed and backbone.packs)
    return SSD(backbone.build(model_config, trunk_layers), head)


def backbone_name(config: Any) -> str:
    """Names `config.model`'s backbone for display, such as "Root-ResNet-34" or "VGG-16 x 0.5"."""
    name = _backbone(config).name(config)
    return name if config.width == 1 else f"{name} x {config.width:g}"


def feature_sizes(model: SSD, image_size: int | tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Returns the heights and widths of the source maps; see `feature_shapes`."""
    return tuple(shape[:2] for shape in feature_shapes(model, image_size))


def feature_shapes(
    model: SSD, image_size: int | tuple[int, int]
) -> tuple[tuple[int, int, int], ...]:
    """Returns (height, width, channels) of the source maps of an image.

    `image_size` is a square's side, or (H, W). Traces the shapes and computes nothing.

    Raises:
        UserError: the image is too small for the network.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    too_small = UserError(
        f"an input of {height} x {width} pixels is too small: the last source map of this network "
        "would be empty; use a larger config.image_size or other config.model.extra_strides"
    )
    if min(height, width) < 2:
        raise too_small
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    maps, _ = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False, method="sources"),
        images,
    )
    shapes = tuple(x.shape[1:] for x in maps)
    if min(map(min, shapes)) < 1:
        raise too_small
    return shapes


def _backbone(config: Any) -> Backbone:
    """Returns the backbone that `config.model.backbone` names in the table or by import path."""
    if ":" in config.backbone:
        return imported(config.backbone)
    known, names = one_of(config.backbone, tuple(BACKBONES))
    _require(config, {"backbone": (known, f"{names}, or package.module:NAME for one of your own")})
    return BACKBONES[config.backbone]


def _require(config: Any, checks: dict[str, Check]) -> None:
    """Raises UserError for the first check that fails, naming its field."""
    for field, (holds, wanted) in checks.items():
        if not holds:
            raise UserError(f"config.model.{field} is {getattr(config, field)!r}: use {wanted}")


def _check(
    config: Any, backbone: Backbone, num_classes: int, anchors_per_cell: tuple[int, ...]
) -> None:
    """Raises UserError for the first field that cannot be built, naming it."""
    strides = tuple(config.extra_strides)
    _require(config, backbone.checks(config))
    _require(
        config,
        {
            "norm": one_of(config.norm, ("batch", "none")),
            "head_norm": one_of(config.head_norm, ("batch", "none")),
            "dtype": one_of(config.dtype, ("float32", "bfloat16")),
            "layout": one_of(config.layout, ("auto", "plain", "packed")),
            "width": (config.width > 0, "a number above 0"),
            "extra_channels": (config.extra_channels > 0, "a number above 0"),
            "extra_strides": (all(s in (1, 2) for s in strides), "strides of 1 or 2"),
            "norm_decay": (0 <= config.norm_decay < 1, "a number from 0 to below 1"),
            "norm_epsilon": (config.norm_epsilon > 0, "a number above 0"),
            "head_norm_epsilon": (config.head_norm_epsilon >= 0, "a number above 0, or 0"),
            "initializer": one_of(config.initializer, ("kaiming", "caffe")),
        },
    )
    check_norm_span(config.norm_span)
    if num_classes < 1:
        raise UserError(f"the data has {num_classes} classes: at least 1 is needed")
    fixed = backbone.sources(config) + bool(config.last_convolutions)
    levels, maps = len(anchors_per_cell), fixed + len(strides)
    if levels != maps:
        raise UserError(
            f"config.anchors has {plural(levels, 'level')} but config.model.extra_strides "
            f"{strides} gives {plural(maps, 'source map')}: use "
            f"{plural(max(levels - fixed, 0), 'extra stride')} or other anchors"
        )
