"""The paper's BatchNorm table: SSD300 with truncated VGG-16, VOC 07+12 → VOC07 test.

--config=configs/bn_ablation.py:ROW, where ROW names the place of BatchNorm and the learning rate.
"""

from typing import NamedTuple

import ml_collections

from scratchdet_jax.config import defaults

FILE = "configs/bn_ablation.py"
# torchvision's weights of ImageNet, imported by tools/import_torch.
IMAGENET_RUNS = {"pretrained": "runs/vgg16_imagenet", "pretrained_bn": "runs/vgg16_bn_imagenet"}


class Row(NamedTuple):
    """BatchNorm in the backbone and extra layers, and in the head; learning rate; published mAP."""

    norm: str
    head_norm: str
    learning_rate: float
    mean_average_precision: float


ROWS = {
    "none": Row("none", "none", 0.001, 67.6),
    "head_0.001": Row("none", "batch", 0.001, 71.0),
    "head_0.01": Row("none", "batch", 0.01, 75.6),
    "backbone_0.001": Row("batch", "none", 0.001, 72.8),
    "backbone_0.01": Row("batch", "none", 0.01, 77.8),
    "backbone_0.05": Row("batch", "none", 0.05, 78.0),
    "both_0.001": Row("batch", "batch", 0.001, 71.8),
    "both_0.01": Row("batch", "batch", 0.01, 77.3),
    "both_0.05": Row("batch", "batch", 0.05, 78.7),
    "pretrained": Row("none", "none", 0.001, 77.2),
    "pretrained_bn": Row("batch", "none", 0.001, 78.2),
}
PUBLISHED = {name: row.mean_average_precision for name, row in ROWS.items()}


def get_config(row: str = "") -> ml_collections.ConfigDict:
    """Makes SSD300: maps of 38, 19, 10, 5, 3, 1, 8,732 anchors; layers of the Caffe release.

    Rows with a rate of 0.001 have SSD's schedule, the others that of the release. The pretrained
    rows start from torchvision's ImageNet weights and normalise their input with the mean and
    deviation of these. `pretrained` is SSD itself, with L2-Norm on conv4_3; the networks trained
    from scratch have none.
    """
    defaults.check_row(row, ROWS, FILE)
    fields = ROWS[row]
    config = defaults.get_config()
    config.name = f"bn_ablation_{row}"
    defaults.use_caffe(config)
    config.model.backbone = "vgg16"
    config.model.extra_strides = (2, 2, 1, 1)
    config.model.norm = fields.norm
    config.model.head_norm = fields.head_norm
    config.model.l2_norm = row == "pretrained"
    config.model.pool_norms = fields.norm == "batch" and row != "pretrained_bn"
    config.anchors.update(defaults.anchor_fields("voc300"))
    if fields.learning_rate == 0.001:
        defaults.use_ssd_schedule(config)
    config.optimizer.learning_rate = fields.learning_rate
    if row in IMAGENET_RUNS:
        config.init_from = IMAGENET_RUNS[row]
        config.normalize.mean = defaults.IMAGENET_MEAN
        config.normalize.std = defaults.IMAGENET_STD
    return config
