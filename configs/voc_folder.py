"""Your own images with VOC annotations. The classes come from the annotations.

python train.py --config=configs/voc_folder.py --config.data.folder=/data/BCCD
"""

import ml_collections

from scratchdet_jax.config import defaults


def get_config() -> ml_collections.ConfigDict:
    """Makes a narrow Root-ResNet-18 for small data sets; raise depth and width for larger ones."""
    config = defaults.get_config()
    config.name = "voc_folder"
    config.data.folder = ""  # required: images and their VOC annotations, prepared at first use
    defaults.use_own_images(config)
    return config
