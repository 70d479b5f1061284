"""AP and recall by the size of the objects."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from scratchdet_jax.reports.page.tables import Cell, Score
from scratchdet_jax.reports.report.study import RunStudy

SIZES = {"small": ("s", 0, 32**2), "medium": ("m", 32**2, 96**2), "large": ("l", 96**2, np.inf)}
"""COCO's: the ending of the metric's name, and the area in pixels of the image."""


class Sizes(NamedTuple):
    """COCO's metrics by size: small, medium, large; None without such objects.

    Attributes:
        objects: number of objects that count.
        ap: AP, IoU 0.5:0.95.
        recall: the mean over the same IoU of the share that 100 detections of an image find.
    """

    objects: dict[str, int]
    ap: dict[str, float | None]
    recall: dict[str, float | None]

    @classmethod
    def measure(cls, study: RunStudy) -> "Sizes":
        """Takes the metrics and counts the objects."""
        truth = study.analysis.truth
        boxes = truth.boxes_pixels[~truth.ignore]
        area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        counts = {
            name: int(np.sum((area >= low) & (area < high)))
            for name, (_, low, high) in SIZES.items()
        }
        ap = {name: study.coco[f"AP{end}"] for name, (end, _, _) in SIZES.items()}
        recall = {name: study.coco[f"AR{end}"] for name, (end, _, _) in SIZES.items()}
        return cls(counts, ap, recall)

    @staticmethod
    def rows(runs: Mapping[str, "Sizes"]) -> list[list[Cell]]:
        """Returns the metrics by size, for each run."""
        columns: list[list[Cell]] = [["size", *SIZES]]
        for name, run in runs.items():
            head = f"{name}: objects" if len(runs) > 1 else "objects"
            columns.append([head, *(f"{run.objects[size]:,}" for size in SIZES)])
            columns.append(["AP@.5:.95", *(Score(run.ap[size]) for size in SIZES)])
            columns.append(["recall", *(Score(run.recall[size]) for size in SIZES)])
        return [list(row) for row in zip(*columns, strict=True)]
