"""Networks: Flax Linen modules from images to class logits and box offsets."""

from scratchdet_jax.models.ssd import backbone_name, build_model, feature_sizes

__all__ = ["backbone_name", "build_model", "feature_sizes"]
