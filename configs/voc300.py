"""ScratchDet-300 on PASCAL VOC 07+12 trainval, scored on VOC07 test (published: 80.4 mAP)."""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
    """Batch 128, rate 0.05, drops at 40k, 75k and 90k of 100k updates (Caffe release)."""
    config = common.get_config()
    config.name = "voc300"
    return config
