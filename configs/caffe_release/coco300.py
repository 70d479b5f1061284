"""ScratchDet-300 on COCO as in the authors' Caffe release."""

from pathlib import Path

import ml_collections

from scratchdet_jax.config import defaults
from scratchdet_jax.config.recipes import load_recipe


def get_config() -> ml_collections.ConfigDict:
    """Makes the network of voc300.py with BatchNorm in the head and the anchors of COCO.

    Batch 128, as 16 on each of four GPUs, accumulated twice; rate 0.05 without warm-up, drops at
    150k, 250k, 310k and 320k of 325k updates.
    """
    config = load_recipe(str(Path(__file__).parent / "voc300.py"))
    config.name = "caffe_release_coco300"
    defaults.use_coco(config)
    config.eval.score_threshold = 0.01
    config.model.head_norm = "batch"
    config.model.norm_span = 16
    config.accumulate_steps = 2
    config.train_images = 325_000 * 128
    config.anchors.update(defaults.anchor_fields("coco300"))
    config.optimizer.drop_at = (150 / 325, 250 / 325, 310 / 325, 320 / 325)
    return config
