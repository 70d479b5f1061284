"""ScratchDet-300 on COCO as in the authors' mmdetection release, whose checkpoints it fits."""

import ml_collections

from scratchdet_jax.config import defaults

EPOCHS = 52


def get_config() -> ml_collections.ConfigDict:
    """Sets six maps of 38, 19, 10, 5, 3, 3; the two 3×3 maps keep SSD300's steps 100 and 300.

    Rate 0.05, drops at epochs 34, 46 and 50 of 52. The release trains 50 images per GPU on an
    unknown number of GPUs; here they are four, as in the Caffe release.
    """
    config = defaults.get_config()
    config.name = "mmdet_release_ssd300"
    config.train_images = EPOCHS * defaults.COCO_EPOCH_IMAGES
    defaults.use_coco(config)
    config.batch_size = 200
    config.optimizer.reference_batch_size = 200
    config.model.norm_span = 50
    config.model.extra_strides = (2, 2, 2, 1)
    config.anchors.update(defaults.anchor_fields("coco300", rounded=True))
    config.normalize.mean = defaults.IMAGENET_MEAN
    config.optimizer.drop_at = (34 / EPOCHS, 46 / EPOCHS, 50 / EPOCHS)
    return config
