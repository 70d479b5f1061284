"""SSD with VGG-16 as other programs have published it, for importing their weights.

--config=configs/stock_ssd.py:ROW, where ROW names the program and the checkpoint. The recipes
differ in the input's normalisation and the anchors.
"""

from typing import NamedTuple

import ml_collections

from scratchdet_jax.config import defaults

FILE = "configs/stock_ssd.py"
# torchvision's mean (0.48235, 0.45882, 0.40784), times 255.
TORCHVISION_MEAN = (122.99925, 116.9991, 103.9992)
CAFFE_MEAN = (123.0, 117.0, 104.0)


class Row(NamedTuple):
    """Anchor specification, whether its sides are clipped, mean colour, and the published figure.

    The figure is the mAP on VOC07 test for anchors of VOC, and the AP on COCO val2017 otherwise.
    """

    anchors: str
    sides_clipped: bool
    mean: tuple[float, float, float]
    published: float


ROWS = {
    "ssd_pytorch": Row("voc300", True, CAFFE_MEAN, 77.43),
    "torchvision": Row("coco300", True, TORCHVISION_MEAN, 25.1),
    "mmdetection300": Row("coco300", False, defaults.IMAGENET_MEAN, 25.9),
    "mmdetection512": Row("coco512", False, defaults.IMAGENET_MEAN, 29.8),
}
PUBLISHED = {name: row.published for name, row in ROWS.items()}


def get_config(row: str = "") -> ml_collections.ConfigDict:
    """Makes SSD300 or SSD512 without BatchNorm, trained from scratch with SSD's VOC schedule."""
    defaults.check_row(row, ROWS, FILE)
    fields = ROWS[row]
    config = defaults.get_config()
    config.name = f"stock_ssd_{row}"
    defaults.use_caffe(config)
    defaults.use_ssd_schedule(config)
    config.model.backbone = "vgg16"
    config.model.norm = config.model.head_norm = "none"
    config.model.extra_strides = (2, 2, 1, 1)
    if fields.anchors.endswith("512"):
        config.image_size = 512
        config.model.extra_strides = (2, 2, 2, 2)
        config.model.last_convolutions = True
    if fields.anchors.startswith("coco"):
        defaults.use_coco(config)
    config.anchors.update(
        defaults.anchor_fields(fields.anchors, sides_clipped=fields.sides_clipped)
    )
    config.normalize.mean = fields.mean
    return config
