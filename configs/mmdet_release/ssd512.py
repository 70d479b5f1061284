"""ScratchDet-512 on COCO as in the authors' mmdetection release, whose checkpoints it fits."""

from pathlib import Path

import ml_collections

from scratchdet_jax.config import defaults
from scratchdet_jax.config.recipes import load_recipe


def get_config() -> ml_collections.ConfigDict:
    """Sets seven maps of 64, 32, 16, 8, 4, 2, 1, the last by a 3×3 and a 4×4 convolution.

    Differs from configs/coco512.py in the last map, the rounded anchors and the mean colour.
    """
    config = load_recipe(str(Path(__file__).parents[1] / "coco512.py"))
    config.name = "mmdet_release_ssd512"
    config.model.extra_strides = (2, 2, 2, 2)
    config.model.last_convolutions = True
    config.anchors.update(defaults.anchor_fields("coco512", rounded=True))
    config.normalize.mean = defaults.IMAGENET_MEAN
    return config
