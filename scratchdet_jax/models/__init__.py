"""Networks: Flax Linen modules from images to class logits and box offsets."""

from scratchdet_jax.models.backbone import Backbone
from scratchdet_jax.models.ssd import (
    BACKBONES,
    SSD,
    backbone_name,
    build_model,
    feature_shapes,
    feature_sizes,
)

__all__ = [
    "BACKBONES",
    "SSD",
    "Backbone",
    "backbone_name",
    "build_model",
    "feature_shapes",
    "feature_sizes",
]
