"""ScratchDet-300 on PASCAL VOC: the four single-scale rows of the paper's results.

--config=configs/voc300.py is VOC 07+12 trainval → VOC07 test. The other rows are
configs/voc300.py:voc07_coco, :voc12 and :voc12_coco. :voc07_sync_bn is the first with BatchNorm
statistics of the whole batch.
"""

import ml_collections

from scratchdet_jax.config import defaults

FILE = "configs/voc300.py"
COCO_RUN = "runs/coco300"  # the run of configs/coco300.py
VOC07_TRAIN = "voc/2007:train+validation,voc/2012:train+validation"
VOC12_TRAIN = "voc/2007:train+validation+test,voc/2012:train+validation"  # "07++12"
# Published mAP on VOC07 test (11-point) or VOC12 test (area, by the evaluation server).
PUBLISHED = {
    "voc07": 80.4,
    "voc07_sync_bn": None,
    "voc07_coco": 84.0,
    "voc12": 78.5,
    "voc12_coco": 82.1,
}


def get_config(row: str = "voc07") -> ml_collections.ConfigDict:
    """Sets batch 128, rate 0.05, drops at 40k, 75k and 90k of 100k updates (Caffe release).

    The rows with COCO start from the run of configs/coco300.py, at the rate of 0.001 that DSOD's
    authors took for the same steps; the sources do not give ScratchDet's own.
    """
    defaults.check_row(row, PUBLISHED, FILE)
    config = defaults.get_config()
    config.name = "voc300" if row == "voc07" else f"voc300_{row}"
    config.model.norm_span = 0 if row.endswith("sync_bn") else 32  # images on a GPU of the authors
    config.data.train = VOC12_TRAIN if row.startswith("voc12") else VOC07_TRAIN
    if row.startswith("voc12"):
        config.data.eval = ""  # the boxes of VOC12 test are not public
        config.eval.metric = "voc_area"
    if row.endswith("coco"):
        config.init_from = COCO_RUN
        config.optimizer.learning_rate = 0.001
    return config
