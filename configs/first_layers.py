"""The paper's table of first layers: ResNet-18 against Root-ResNet-18, VOC 07+12 → VOC07 test.

--config=configs/first_layers.py:ROW, where ROW is conv7_stride2, conv7_stride2_no_pool,
root_stride2, conv7_stride1 or root_stride1: a 7×7 convolution or three 3×3 ones, the stride of the
first, and whether a pooling follows.
"""

from typing import NamedTuple

import ml_collections

from scratchdet_jax.config import defaults

FILE = "configs/first_layers.py"


class Row(NamedTuple):
    """First convolutions, stride of the first, whether a pooling follows, published mAP."""

    stem: str
    stride: int
    pool: bool
    mean_average_precision: float


ROWS = {
    "conv7_stride2": Row("conv7", 2, True, 73.1),
    "conv7_stride2_no_pool": Row("conv7", 2, False, 75.3),  # "ResNet-18-A"
    "root_stride2": Row("root", 2, True, 75.4),
    "conv7_stride1": Row("conv7", 1, True, 77.6),
    "root_stride1": Row("root", 1, True, 78.5),
}
PUBLISHED = {name: row.mean_average_precision for name, row in ROWS.items()}


def get_config(row: str = "") -> ml_collections.ConfigDict:
    """Sets maps of 38, 19, 10, 5, 3, 1 with 256, 512, 512, 256, 256, 256 channels in all rows.

    root_stride1 is the authors' `Resnet18rootV2`: pre-activation units and SSD's extra layers. The
    other rows differ from it in the first layers alone. Where these reduce the image to a quarter,
    the second stage keeps its size, so that the head sees the same maps.
    """
    defaults.check_row(row, ROWS, FILE)
    fields = ROWS[row]
    config = defaults.get_config()
    config.name = f"first_layers_{row}"
    defaults.use_caffe(config)
    config.model.depth = 18
    config.model.stem = fields.stem
    config.model.stem_stride = fields.stride
    config.model.stem_pool = fields.pool
    if fields.stride == 2 and fields.pool:
        config.model.stage_strides = (1, 1, 2, 2)
    config.model.preactivation = True
    config.model.source_maps = "convolution"
    config.model.extras = "plain"
    config.model.extra_strides = (2, 2, 1, 1)
    config.anchors.update(defaults.anchor_fields("voc300"))
    return config
