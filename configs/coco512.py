"""ScratchDet-512 on COCO, as the authors' mmdetection release trains it."""

import ml_collections

from scratchdet_jax.config import defaults

EPOCHS = 84


def get_config() -> ml_collections.ConfigDict:
    """Seven maps of 64, 32, 16, 8, 4, 2, 1; rate 0.03, drops at epochs 38, 70 and 80 of 84.

    The release trains 20 images per GPU on an unknown number of GPUs; the rate is assumed to be for
    a batch of 128, as elsewhere. With less memory, raise accumulate_steps.
    """
    config = defaults.get_config()
    config.name = "coco512"
    config.image_size = 512
    config.train_images = EPOCHS * defaults.COCO_EPOCH_IMAGES
    defaults.use_coco(config)
    config.model.extra_strides = (2, 2, 2, 2, 2)
    config.anchors.update(defaults.anchor_fields("coco512"))
    config.optimizer.learning_rate = 0.03
    config.optimizer.drop_at = (38 / EPOCHS, 70 / EPOCHS, 80 / EPOCHS)
    return config
