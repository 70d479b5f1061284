"""The experiments that test the paper's thesis: their runs, and the orderings that it claims."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_collections

from configs import shapes, voc_folder

CHOICE_SEED = 100  # of the runs that choose a learning rate; no result uses it
# The paper's BatchNorm table uses VGG-16, and so do these. A residual network without BatchNorm
# shows nothing about rates: every block adds the variance of its branch, the first gradient has a
# norm of 10,000 here, and it diverges within three updates at 0.005 as at 0.05.
VGG = {
    "model.backbone": "vgg16",
    "model.width": 0.1875,
    "model.extra_strides": (2, 2, 2, 2),  # the source maps of the Root-ResNet
}
NORMS = {  # title, model.norm (backbone and extra blocks), model.head_norm, mAP at its best rate
    "none": ("no BN", "none", "none", "67.6"),
    "head": ("BN in the head", "none", "batch", "75.6"),
    "backbone": ("BN in the backbone", "batch", "none", "78.0"),
    "both": ("BN in both", "batch", "batch", "78.7"),
}
STEMS = {  # title, model.stem, model.stem_stride, mAP
    "conv7_stride2": ("7×7, stride 2", "conv7", 2, "73.1"),
    "root_stride2": ("three 3×3, stride 2", "root", 2, "75.4"),
    "conv7_stride1": ("7×7, stride 1", "conv7", 1, "77.6"),
    "root_stride1": ("root block", "root", 1, "78.5"),
}
WALKED = ("none", "both")  # rows whose checkpoints are kept, for landscape.py
HIGH_RATE = 0.05  # the paper's
# Rows with BatchNorm have the best rate of the paper. It trains the row without only at 0.001, and
# so short a training may need another: that rate is chosen.
PAPER_RATES = {"head": 0.01, "backbone": HIGH_RATE, "both": HIGH_RATE}
CANDIDATES = (0.0003, 0.001, 0.003, 0.01)  # learning rates to choose from without BatchNorm


class Row(NamedTuple):
    """A row of the tables.

    Attributes:
        key: the prefix of its runs' folders.
        title: its name in the table.
        rate: the learning rate.
        fields: changes of the recipe, by dotted name.
        published: the paper's mAP on VOC07 test, as text.
    """

    key: str
    title: str
    rate: float
    fields: dict[str, object]
    published: str


class Ordering(NamedTuple):
    """A claim of the paper: the row `above` scores higher than the row `below` by `figure`."""

    claim: str
    above: str
    below: str
    published: str
    figure: str


class Study(NamedTuple):
    """Rows that are trained on one data set with the same seeds.

    Attributes:
        recipe: makes the config that the rows change.
        fields: the changes that all rows share, by dotted name.
        candidates: the runs that choose the learning rate without BatchNorm.
        choice_fields: changes of those runs, by dotted name.
        tables: the rows of each table, by its title.
        figures: the columns of the tables: titles by the field of an evaluation record; the first
            is what the rate is chosen by.
        per_class: whether the tables also have a column of AP for each class.
        orderings: the claims that these rows can test.
        plateau: a classification loss just below that of a constant answer: a run with a lower one
            has left its first plateau; None to leave this out.
        seeds: of the reported runs.
        images: the training images of a run.
    """

    recipe: Callable[[], ml_collections.ConfigDict]
    fields: dict[str, object]
    candidates: tuple[Row, ...]
    choice_fields: dict[str, object]
    tables: dict[str, tuple[Row, ...]]
    figures: dict[str, str]
    per_class: bool
    orderings: tuple[Ordering, ...]
    plateau: float | None
    seeds: tuple[int, ...]
    images: int

    def rows(self) -> tuple[Row, ...]:
        """Returns the rows of all tables."""
        return tuple(row for rows in self.tables.values() for row in rows)


def norm_rows(image_size: int, rate_without: float) -> tuple[Row, ...]:
    """Lists the places of BatchNorm in VGG-16, each at its rate; without any, `rate_without`."""
    rates = {"none": rate_without, **PAPER_RATES}
    return tuple(
        Row(key, title, rates[key], norm_fields(key, image_size), published)
        for key, (title, _, _, published) in NORMS.items()
    )


def norm_fields(key: str, image_size: int) -> dict[str, object]:
    """Returns the changes that make a row of NORMS."""
    _, norm, head_norm, _ = NORMS[key]
    return {**VGG, "image_size": image_size, "model.norm": norm, "model.head_norm": head_norm}


def stem_rows(image_size: int) -> tuple[Row, ...]:
    """Returns the first layers of ResNet-18, with BatchNorm in both, at the paper's rate."""
    made = []
    for key, (title, stem, stride, published) in STEMS.items():
        fields: dict[str, object] = {"image_size": image_size}
        fields |= {"model.stem": stem, "model.stem_stride": stride}
        if stride == 2:  # three stages are source maps: one extra block less gives the same maps
            fields["model.extra_strides"] = (2, 2, 2)
        made.append(Row(f"stem_{key}", title, HIGH_RATE, fields, published))
    return tuple(made)


def candidate_rows(image_size: int) -> tuple[Row, ...]:
    """Returns VGG-16 without BatchNorm at every rate to choose from."""
    title, fields = NORMS["none"][0], norm_fields("none", image_size)
    return tuple(Row(f"none_{rate:g}", title, rate, fields, "–") for rate in CANDIDATES)


def norm_orderings(figure: str) -> tuple[Ordering, ...]:
    """Returns the claims about BatchNorm, each row at its best rate."""
    return (
        Ordering("BN in both above no BN", "both", "none", "78.7 > 67.6", figure),
        Ordering("BN in the backbone above no BN", "backbone", "none", "78.0 > 67.6", figure),
        Ordering("BN in the head above no BN", "head", "none", "75.6 > 67.6", figure),
        Ordering("BN in both above BN in the head", "both", "head", "78.7 > 75.6", figure),
        Ordering("BN in both above BN in the backbone", "both", "backbone", "78.7 > 78.0", figure),
    )


def stem_orderings(figure: str, prefix: str = "") -> tuple[Ordering, ...]:
    """Returns the claims about the first layers."""
    root, root2 = "stem_root_stride1", "stem_root_stride2"
    conv, conv2 = "stem_conv7_stride1", "stem_conv7_stride2"
    claims = (
        ("7×7: stride 1 above stride 2", conv, conv2, "77.6 > 73.1"),
        ("three 3×3: stride 1 above stride 2", root, root2, "78.5 > 75.4"),
        ("stride 2: three 3×3 above 7×7", root2, conv2, "75.4 > 73.1"),
        ("stride 1: three 3×3 above 7×7", root, conv, "78.5 > 77.6"),
    )
    return tuple(
        Ordering(prefix + claim, above, below, "–" if prefix else published, figure)
        for claim, above, below, published in claims
    )


def shapes_study(data_dir: str) -> Study:
    """Returns both tables on the embedded data set, whose images have 128 pixels.

    At 64 pixels, half of the objects are 7 to 12 pixels wide, which is what the root block is for.
    But a VGG-16 needs half of the run to leave the plateau of a constant answer there; it gets 96.
    """
    diverging = Row("none_high", "no BN", HIGH_RATE, norm_fields("none", 96), "–")
    return Study(
        recipe=shapes.get_config,
        fields={"data.dir": data_dir, "eval.metric": "coco"},
        candidates=candidate_rows(96),
        choice_fields={},
        tables={
            "Where BatchNorm is (narrow VGG-16, 96 px)": (
                *norm_rows(96, rate_without=0.001),
                diverging,
            ),
            "The first layers (narrow ResNet-18, BN in both, 64 px)": stem_rows(64),
        },
        figures={"AP50": "AP50", "APs": "AP small"},
        per_class=False,
        orderings=(
            *norm_orderings("AP50"),
            *stem_orderings("AP50"),
            *stem_orderings("APs", "small objects, "),
        ),
        # With six classes, equally frequent, and 3:1 mining: ln 4 + ln 6 + 3 ln 4/3 = 4.04.
        plateau=3.8,
        seeds=(0, 1, 2, 3, 4),
        images=36_000,
    )


def photo_study(data_dir: str, folder: str) -> Study:
    """Makes the BatchNorm table on photos such as BCCD: rate chosen on `val`, scored on `test`."""
    return Study(
        recipe=voc_folder.get_config,
        fields={"data.dir": data_dir, "data.folder": folder, "data.eval": "test"},
        candidates=candidate_rows(128),
        choice_fields={"data.eval": "val"},
        tables={"Where BatchNorm is (narrow VGG-16, 128 px)": norm_rows(128, rate_without=0.001)},
        figures={"mAP": "mAP"},
        per_class=True,
        orderings=norm_orderings("mAP"),
        plateau=None,
        seeds=(0, 1),
        images=12_800,
    )


def run_config(
    study: Study, row: Row, seed: int, images: int, choosing: bool = False
) -> ml_collections.ConfigDict:
    """Returns the study's recipe with the changes of the row.

    The first seed, whose AP is drawn over time, is evaluated six times, the others at the end only.
    """
    config = study.recipe()
    sixth = math.ceil(images / config.batch_size / 6)
    fields = {
        "name": f"thesis, {row.title}, rate {row.rate:g}, seed {seed}",
        "seed": seed,
        "train_images": images,
        "optimizer.learning_rate": row.rate,
        "eval.every_steps": sixth if seed == study.seeds[0] else 0,
        "log_every": 1,
        "keep_checkpoints": 20 if row.key in WALKED else 1,
    }
    fields |= study.fields | (study.choice_fields if choosing else {})
    config.update_from_flattened_dict(fields | row.fields)
    return config.lock()


def run_folder(output: Path, key: str, seed: int) -> Path:
    """Returns the folder of a run of the row with this key."""
    return output / f"{key}_seed{seed}"
