r"""Your own images with COCO annotations or YOLO labels, prepared by tools.prepare.

python train.py --config=configs/coco_folder.py \
    --config.data.train=coco_folder/NAME:train --config.data.eval=coco_folder/NAME:val
"""

import ml_collections

from scratchdet_jax.config import defaults


def get_config() -> ml_collections.ConfigDict:
    """Follows configs/voc_folder.py, with COCO's metric; crowd boxes are not trained on."""
    config = defaults.get_config()
    config.name = "coco_folder"
    defaults.use_own_images(config)
    config.data.max_boxes = 200
    config.data.train_on_ignored = False  # crowd regions are not objects
    config.eval.metric = "coco"
    return config
