"""The built-in example: generated scenes of six shapes, trained from scratch on a laptop."""

import ml_collections

from scratchdet_jax.config import defaults


def get_config() -> ml_collections.ConfigDict:
    """Makes a narrow Root-ResNet-18 at 128 px; it trains in about six minutes on two cores."""
    config = defaults.get_config()
    config.name = "shapes"
    config.image_size = 128
    config.batch_size = 16
    config.train_images = 18_000  # 4.5 epochs: too short for SSD's full augmentation to help
    config.data.train = "shapes:train"
    config.data.eval = "shapes:validation"
    config.data.canvas = (128, 128)
    config.data.max_boxes = 16
    config.augment.photometric_probability = 0.0
    config.augment.expand_probability = 0.0
    config.augment.crop = False
    config.model.depth = 18
    config.model.width = 0.25
    # The boxes of rotated shapes are nearly square: two square anchors per cell.
    config.anchors.min_percent = (14, 28, 42, 55, 69, 82)  # match 95 % of the boxes at IoU 0.5
    config.anchors.max_percent = (28, 42, 55, 69, 82, 96)
    config.anchors.aspect_ratios = ((), (), (), (), (), ())
    config.anchors.steps = ()
    config.optimizer.reference_batch_size = 0
    config.optimizer.warmup_steps = 50
    config.optimizer.drop_at = (0.75, 0.92)
    config.eval.batch_size = 50
    config.eval.every_steps = 0
    config.log_every = 5
    config.checkpoint_every = 250
    return config
