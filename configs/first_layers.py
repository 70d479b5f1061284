"""The paper's table of first layers: ResNet-18 against Root-ResNet-18, VOC 07+12 → VOC07 test.

--config=configs/first_layers.py:ROW, where ROW is conv7_stride2, root_stride2, conv7_stride1 or
root_stride1: a 7×7 convolution or three 3×3 ones, and the stride of the first.
"""

import ml_collections

from scratchdet_jax.config import defaults

FILE = "configs/first_layers.py"
PUBLISHED = {
    "conv7_stride2": 73.1,
    "root_stride2": 75.4,
    "conv7_stride1": 77.6,
    "root_stride1": 78.5,
}


def get_config(row: str = "") -> ml_collections.ConfigDict:
    """Every row has maps of 38, 19, 10, 5, 3, 2: the authors gave all rows the same maps.

    The depth of 18 is that of the authors' figure; the poster's table gives none. With stride 2,
    one more stage gives a source map, so there is one extra block less.
    """
    defaults.check_row(row, PUBLISHED, FILE)
    stem, _, stride = row.partition("_stride")
    config = defaults.get_config()
    config.name = f"first_layers_{row}"
    config.model.depth = 18
    config.model.stem = stem
    config.model.stem_stride = int(stride)
    config.model.extra_strides = (2, 2, 2, 2) if stride == "1" else (2, 2, 2)
    return config
