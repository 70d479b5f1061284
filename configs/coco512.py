"""ScratchDet-512 on COCO, as the authors' mmdetection release trains it."""

import ml_collections

from scratchdet_jax.config import defaults

EPOCHS = 84


def get_config() -> ml_collections.ConfigDict:
    """Sets seven maps of 64, 32, 16, 8, 4, 2, 1; rate 0.03, drops at epochs 38, 70, 80 of 84.

    The release trains 20 images per GPU on an unknown number of GPUs; here they are four, as in the
    Caffe release. With less memory, raise accumulate_steps.
    """
    config = defaults.get_config()
    config.name = "coco512"
    config.image_size = 512
    config.train_images = EPOCHS * defaults.COCO_EPOCH_IMAGES
    defaults.use_coco(config)
    config.batch_size = 80
    config.optimizer.reference_batch_size = 80
    config.model.norm_span = 20
    config.model.extra_strides = (2, 2, 2, 2, 2)
    config.anchors.update(defaults.anchor_fields("coco512"))
    config.optimizer.learning_rate = 0.03
    config.optimizer.drop_at = (38 / EPOCHS, 70 / EPOCHS, 80 / EPOCHS)
    return config
