"""The runs that test the paper's thesis, and the orderings that it claims."""

from pathlib import Path
from typing import NamedTuple

import ml_collections

from configs import shapes

RATES = {"low": 0.001, "middle": 0.01, "high": 0.05}  # as in the paper
COMPARED = ("low", "high")  # rates at which all four places of BatchNorm are trained
SEEDS = (0, 1, 2)
IMAGES = 12_000  # training images of each run: three epochs
IMAGE_SIZE = 96  # pixels; the shapes recipe's 128 would take twice as long
# The paper's BatchNorm table uses VGG-16, and so does this one. A residual network without
# BatchNorm shows nothing about rates: every block adds the variance of its branch, the first
# gradient has a norm of 10,000 here, and it diverges within three updates at 0.005 as at 0.05.
VGG = {
    "model.backbone": "vgg16",
    "model.width": 0.1875,
    "model.extra_strides": (2, 2, 2, 2),  # the source maps of the Root-ResNet
}
NORMS = {  # model.norm (backbone and extra blocks), model.head_norm
    "none": ("none", "none"),
    "head": ("none", "batch"),
    "backbone": ("batch", "none"),
    "both": ("batch", "batch"),
}
STEMS = {  # model.stem, model.stem_stride
    "conv7_stride2": ("conv7", 2),
    "root_stride2": ("root", 2),
    "conv7_stride1": ("conv7", 1),
    "root_stride1": ("root", 1),
}


class Row(NamedTuple):
    """A row of the tables.

    Attributes:
        key: the prefix of its runs' folders.
        title: its name in the table.
        rate: a key of RATES.
        fields: changes of the shapes recipe, by dotted name.
        published: the paper's mAP on VOC07 test, as text.
    """

    key: str
    title: str
    rate: str
    fields: dict[str, object]
    published: str


class Ordering(NamedTuple):
    """A claim of the paper: the row `above` scores higher than the row `below`.

    Several keys stand for the row with the highest mean (a method at its best rate).
    """

    claim: str
    above: tuple[str, ...]
    below: tuple[str, ...]
    published: str
    figure: str = "ap50"


def rows() -> tuple[Row, ...]:
    """All rows: BatchNorm in VGG-16 by rate, then the first layers of ResNet-18."""
    published = {
        "none": ("67.6", "–"),
        "head": ("71.0", "–"),
        "backbone": ("72.8", "78.0"),
        "both": ("71.8", "78.7"),
    }
    names = {
        "none": "no BN",
        "head": "BN in the head",
        "backbone": "BN in the backbone",
        "both": "BN in both",
    }
    made = []
    for rate, mean_ap in zip(COMPARED, zip(*published.values(), strict=True), strict=True):
        for (key, (norm, head_norm)), figure in zip(NORMS.items(), mean_ap, strict=True):
            fields = {**VGG, "model.norm": norm, "model.head_norm": head_norm}
            made.append(Row(f"bn_{key}_{rate}", names[key], rate, fields, figure))
    norm, head_norm = NORMS["head"]  # at its best rate in the paper
    fields = {**VGG, "model.norm": norm, "model.head_norm": head_norm}
    made.append(Row("bn_head_middle", names["head"], "middle", fields, "75.6"))
    titles = ("7×7, stride 2", "three 3×3, stride 2", "7×7, stride 1", "root block")
    for (key, (stem, stride)), title, figure in zip(
        STEMS.items(), titles, ("73.1", "75.4", "77.6", "78.5"), strict=True
    ):
        fields: dict[str, object] = {"model.stem": stem, "model.stem_stride": stride}
        if stride == 2:  # three stages are source maps: one extra block less gives the same maps
            fields["model.extra_strides"] = (2, 2, 2)
        made.append(Row(f"stem_{key}", title, "high", fields, figure))
    return tuple(made)


def orderings() -> tuple[Ordering, ...]:
    """The paper's claims that these rows can test."""
    best = {name: tuple(f"bn_{name}_{rate}" for rate in COMPARED) for name in NORMS}
    low, high = ({name: (f"bn_{name}_{rate}",) for name in NORMS} for rate in COMPARED)
    middle_head = ("bn_head_middle",)
    best["head"] += middle_head
    root, root2 = ("stem_root_stride1",), ("stem_root_stride2",)
    conv, conv2 = ("stem_conv7_stride1",), ("stem_conv7_stride2",)
    better = "each at its best rate"
    return (
        Ordering(f"BN in both above no BN, {better}", best["both"], best["none"], "78.7 > 67.6"),
        Ordering(
            f"BN in the backbone above no BN, {better}",
            best["backbone"],
            best["none"],
            "78.0 > 67.6",
        ),
        Ordering(
            f"BN in the head above no BN, {better}", best["head"], best["none"], "75.6 > 67.6"
        ),
        Ordering(
            f"BN in both above BN in the head, {better}", best["both"], best["head"], "78.7 > 75.6"
        ),
        Ordering(
            f"BN in both above BN in the backbone, {better}",
            best["both"],
            best["backbone"],
            "78.7 > 78.0",
        ),
        Ordering("BN in both: high rate above low", high["both"], low["both"], "78.7 > 71.8"),
        Ordering(
            "BN in the backbone: high rate above low",
            high["backbone"],
            low["backbone"],
            "78.0 > 72.8",
        ),
        Ordering("BN in the head: middle rate above low", middle_head, low["head"], "75.6 > 71.0"),
        Ordering("no BN: low rate above high", low["none"], high["none"], "not trained"),
        Ordering("7×7: stride 1 above stride 2", conv, conv2, "77.6 > 73.1"),
        Ordering("three 3×3: stride 1 above stride 2", root, root2, "78.5 > 75.4"),
        Ordering("stride 2: three 3×3 above 7×7", root2, conv2, "75.4 > 73.1"),
        Ordering("stride 1: three 3×3 above 7×7", root, conv, "78.5 > 77.6"),
        Ordering("small objects, 7×7: stride 1 above 2", conv, conv2, "–", "ap_small"),
        Ordering("small objects, three 3×3: stride 1 above 2", root, root2, "–", "ap_small"),
    )


def run_config(row: Row, seed: int, images: int, data_dir: str) -> ml_collections.ConfigDict:
    """The shapes recipe with the row's changes, scored by COCO's metric for AP by size."""
    config = shapes.get_config()
    fields = {
        "name": f"thesis, {row.title}, {row.rate} rate, seed {seed}",
        "seed": seed,
        "image_size": IMAGE_SIZE,
        "train_images": images,
        "data.dir": data_dir,
        "optimizer.learning_rate": RATES[row.rate],
        "eval.metric": "coco",
        "log_every": 1,
        "keep_checkpoints": 1,
    }
    config.update_from_flattened_dict(fields | row.fields)
    return config.lock()


def run_folder(output: Path, row: Row, seed: int) -> Path:
    """The folder of a run."""
    return output / f"{row.key}_seed{seed}"
