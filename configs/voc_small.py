"""A small detector on PASCAL VOC 2007 from random weights, for a machine without an accelerator.

python train.py --config=configs/voc_small.py --config.data.folder=VOCdevkit/VOC2007

Trains on `train` and evaluates on `val`, so nothing is chosen on the test set.
"""

import ml_collections

from scratchdet_jax.config import defaults


def get_config() -> ml_collections.ConfigDict:
    """Makes Root-ResNet-18 × 0.375 at 160 pixels; SSD's augmentation, the paper's rate.

    150,000 images are 60 epochs of 2,500 photos; with 25 a batch, an evaluation every 1,000 updates
    is one every 25,000 images.
    """
    config = defaults.get_config()
    config.name = "voc_small"
    config.image_size = 160
    config.data.folder = ""  # required: VOCdevkit/VOC2007, prepared at first use
    config.data.train = "train"
    config.data.eval = "val"
    config.model.depth = 18
    config.model.width = 0.375
    config.anchors.steps = ()  # follow image_size, so that image_size can be overridden alone
    config.batch_size = 25
    config.train_images = 150_000
    config.optimizer.reference_batch_size = 0  # the rate of 0.05 does not follow the batch size
    config.optimizer.drop_at = (0.65, 0.85)
    config.eval.batch_size = 25
    config.eval.every_steps = 1_000
    config.checkpoint_every = 200
    return config
