"""Your own images with VOC annotations. The classes come from the annotations.

python train.py --config=configs/voc_folder.py --config.data.folder=/data/BCCD
"""

import ml_collections

from scratchdet_jax.config import defaults


def get_config() -> ml_collections.ConfigDict:
    """A narrow Root-ResNet-18 for small data sets; raise depth and width for larger ones."""
    config = defaults.get_config()
    config.name = "voc_folder"
    config.data.folder = ""  # required: images and their VOC annotations
    config.data.train = "train"
    config.data.eval = "val"
    config.anchors.steps = ()  # follow image_size, so that image_size can be overridden alone
    config.augment.expand_probability = 0.0  # hundreds of images need less augmentation than SSD's
    config.augment.crop_scale = (0.6, 1.0)
    config.model.depth = 18
    config.model.width = 0.25
    config.batch_size = 16
    config.train_images = 24_000
    config.optimizer.learning_rate = 0.05
    config.optimizer.reference_batch_size = 0
    config.optimizer.warmup_steps = 100
    config.optimizer.drop_at = (0.7, 0.9)
    config.eval.batch_size = 16
    config.eval.every_steps = 500
    config.checkpoint_every = 250
    return config
