"""ScratchDet-300 on COCO as the authors' mmdetection release has it: its checkpoints fit this."""

import ml_collections

from scratchdet_jax.config import defaults

EPOCHS, REPEATS, IMAGES = 52, 5, 118_287  # an epoch of the release is five times COCO's train2017


def get_config() -> ml_collections.ConfigDict:
    """Six maps of 38, 19, 10, 5, 3, 3; the two 3×3 maps keep SSD300's steps of 100 and 300.

    Rate 0.05 with 50 images a GPU on an unknown number of GPUs, taken to be that of 128 images;
    drops at epochs 34, 46 and 50 of 52.
    """
    config = defaults.get_config()
    config.name = "mmdet_release_ssd300"
    config.train_images = EPOCHS * REPEATS * IMAGES
    defaults.use_coco(config)
    config.model.extra_strides = (2, 2, 2, 1)
    config.anchors.update(defaults.anchor_fields("coco300", rounded=True))
    config.normalize.mean = (123.675, 116.28, 103.53)
    config.optimizer.drop_at = (34 / EPOCHS, 46 / EPOCHS, 50 / EPOCHS)
    return config
