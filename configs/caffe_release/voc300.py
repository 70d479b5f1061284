"""ScratchDet-300 on VOC as in the authors' Caffe release, the only VOC recipe they released."""

import ml_collections

from scratchdet_jax.config import defaults


def get_config() -> ml_collections.ConfigDict:
    """Sets pre-activation units, and a head without BatchNorm that reads convolutions.

    Maps of 38, 19, 10, 5, 5, 5, the last two with SSD300's steps of 100 and 300. Batch 128, as 32
    on each of four GPUs; rate 0.05 without warm-up, drops at 40k, 75k and 90k of 100k updates.
    """
    config = defaults.get_config()
    config.name = "caffe_release_voc300"
    defaults.use_caffe(config)
    config.model.preactivation = True
    config.model.first_preactivation = False
    config.model.source_maps = "convolution"
    config.model.extras = "preactivation"
    config.model.extra_strides = (2, 2, 1, 1)
    config.model.head_norm = "none"
    config.anchors.update(defaults.anchor_fields("voc300"))
    return config
