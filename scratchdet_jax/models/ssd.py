"""SSD on a trunk of source maps: a pair of 3×3 convolutions on each predicts classes and boxes."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scratchdet_jax.errors import UserError
from scratchdet_jax.models.layers import XAVIER_UNIFORM, Layers
from scratchdet_jax.models.resnet import BLOCKS_PER_STAGE, STAGE_CHANNELS, RootResNet

STAGE_SOURCES = 2  # source maps that come from the stages; the extra blocks add one each


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
        model_config: depth, width, preactivation, norm, head_norm, norm_span, norm_decay,
            norm_epsilon, extra_channels, extra_strides, dtype, as attributes.
        num_classes: C, without the background.
        anchors_per_cell: one a source map: two, and one for each extra block.
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
    trunk = RootResNet(
        depth=model_config.depth,
        stage_channels=tuple(scale_channels(c, model_config.width) for c in STAGE_CHANNELS),
        extra_channels=scale_channels(model_config.extra_channels, model_config.width),
        extra_strides=tuple(model_config.extra_strides),
        preactivation=model_config.preactivation,
        layers=layers,
    )
    head_layers = dataclasses.replace(
        layers, norm=model_config.head_norm, kernel_init=XAVIER_UNIFORM
    )
    head = Head(tuple(anchors_per_cell), num_classes + 1, head_layers)
    return SSD(trunk, head)


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
    return tuple(x.shape[1:3] for x in maps)


def scale_channels(channels: int, width: float) -> int:
    """Channels × width, rounded to the nearest multiple of 8 (halves up), at least 8."""
    return max(8, int(channels * width / 8 + 0.5) * 8)


def _check(config: Any, num_classes: int, anchors_per_cell: tuple[int, ...]) -> None:
    """Raises UserError for the first field that cannot be built, naming it."""
    choices = {
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
    if len(anchors_per_cell) != STAGE_SOURCES + len(strides):
        raise UserError(
            f"The anchors have {len(anchors_per_cell)} levels but config.model.extra_strides "
            f"{strides} gives {STAGE_SOURCES + len(strides)} source maps: use "
            f"{max(len(anchors_per_cell) - STAGE_SOURCES, 0)} extra strides or other anchors."
        )
