"""ScratchDet-300 on COCO (published: 32.7 AP on test-dev)."""

import ml_collections

from scratchdet_jax.config import defaults

PUBLISHED = 32.7  # AP on test-dev; AP50 52.0, AP75 34.9


def get_config() -> ml_collections.ConfigDict:
    """Sets batch 128, rate 0.05, drops at 150, 250, 310, 320k of 325k updates (Caffe release)."""
    config = defaults.get_config()
    config.name = "coco300"
    config.train_images = 325_000 * 128
    defaults.use_coco(config)
    config.model.norm_span = 16  # images on a GPU of the authors
    config.anchors.update(defaults.anchor_fields("coco300", steps=defaults.ROOT_RESNET_STEPS_300))
    config.optimizer.drop_at = (150 / 325, 250 / 325, 310 / 325, 320 / 325)
    return config
