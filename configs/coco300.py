"""ScratchDet-300 on COCO (published: 32.7 AP on test-dev)."""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """Batch 128, rate 0.05, drops at 150k, 250k, 310k, 320k of 325k updates (Caffe release)."""
    config = common.get_config()
    config.name = "coco300"
    config.train_images = 325_000 * 128
    config.data.train = "coco/2017:train"
    config.data.eval = "coco/2017:validation"
    config.data.canvas = (640, 640)
    config.data.max_boxes = 200
    config.data.train_on_ignored = False  # crowd regions are no objects
    config.anchors.update(common.anchor_fields("coco300", steps=(8, 16, 32, 64, 100, 150)))
    config.optimizer.drop_at = (150 / 325, 250 / 325, 310 / 325, 320 / 325)
    config.eval.metric = "coco"
    config.eval.every_steps = 25_000
    config.eval.score_threshold = 0.02
    return config
