"""Networks: Flax Linen modules from images to class logits and box offsets."""
