"""Networks: Flax Linen modules from images to class logits and box offsets."""

from scratchdet_jax.models.ssd import build_model, feature_sizes

__all__ = ["build_model", "feature_sizes"]
