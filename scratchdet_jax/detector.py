"""A detector put together from its config: the model, its anchors, and how to detect with it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import linen as nn

from scratchdet_jax.models import build_model, feature_sizes
from scratchdet_jax.ops import boxes as box_ops
from scratchdet_jax.ops.anchors import AnchorSpecification, anchors_per_cell, make_anchors
from scratchdet_jax.ops.augment import AugmentOptions
from scratchdet_jax.ops.nms import Detections, select_detections


class Detector(NamedTuple):
    """The parts that training and evaluation share.

    Attributes:
        model: Flax module; `model.apply(variables, images, train)` gives class logits [B, A, C+1]
            and box offsets [B, A, 4].
        anchors: float32 [A, 4], (ymin, xmin, ymax, xmax) normalised, not clipped.
        class_names: names of the labels 1…C.
    """

    model: nn.Module
    anchors: np.ndarray
    class_names: tuple[str, ...]


def build_detector(
    config: ml_collections.ConfigDict, class_names: tuple[str, ...], axis_name: str | None = None
) -> Detector:
    """Builds the model of `config.model` and the anchors of `config.anchors`.

    Args:
        config: a run's config.
        class_names: names of the labels 1…C.
        axis_name: the mapped axis over which BatchNorm shares its statistics in training.
    """
    cells = anchors_per_cell(config.anchors.aspect_ratios)
    model = build_model(config.model, len(class_names), cells, axis_name)
    specification = AnchorSpecification(image_size=config.image_size, **config.anchors.to_dict())
    sizes = feature_sizes(model, config.image_size)
    return Detector(model, make_anchors(specification, sizes), tuple(class_names))


def augment_options(config: ml_collections.ConfigDict) -> AugmentOptions:
    """`config.augment`; an expanded image is filled with the colour that is subtracted."""
    return AugmentOptions(**config.augment.to_dict(), mean=config.normalize.mean)


def normalize(images: jax.Array, settings: ml_collections.ConfigDict) -> jax.Array:
    """Pixels 0…255, RGB, to the network's input: (pixel − mean) / std (`config.normalize`)."""
    return (images - jnp.asarray(settings.mean)) / jnp.asarray(settings.std)


def detect(
    detector: Detector,
    config: ml_collections.ConfigDict,
    variables: dict[str, Any],
    images: jax.Array,
) -> Detections:
    """Detections in a batch of normalised images.

    Args:
        detector: the detector.
        config: a run's config; `config.eval` holds the thresholds.
        variables: `params` and `batch_stats`.
        images: float32 [B, S, S, 3], normalised.

    Returns:
        Detections with boxes [B, K, 4], scores [B, K], labels [B, K].
    """
    class_logits, box_offsets = detector.model.apply(variables, images, train=False)
    probabilities = jax.nn.softmax(class_logits, axis=-1)
    boxes = box_ops.decode(box_offsets, detector.anchors)
    return jax.vmap(
        lambda b, p: select_detections(
            b,
            p,
            score_threshold=config.eval.score_threshold,
            iou_threshold=config.eval.nms_iou,
            candidates_per_class=config.eval.candidates_per_class,
            max_detections=config.eval.max_detections,
        )
    )(boxes, probabilities)
