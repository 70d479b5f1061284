"""AP and recall by the size of the objects."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from scratchdet_jax.reports.page.layout import Cell, Score, html_table, soft, text_table
from scratchdet_jax.reports.report.naming import value
from scratchdet_jax.reports.report.study import Study

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
    def measure(cls, study: Study) -> "Sizes":
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
    def to_text(runs: Mapping[str, "Sizes"]) -> Iterator[str]:
        """The table."""
        yield "\nBY OBJECT SIZE"
        yield from text_table(_table(runs))

    @staticmethod
    def to_html(runs: Mapping[str, "Sizes"]) -> Iterator[str]:
        """The table and its definition."""
        yield soft(
            "COCO's sizes: small is below 32² pixels of the image, medium below 96², large above. "
            "AP and recall are means over IoU 0.5:0.95; recall is that of 100 detections an image."
        )
        yield html_table(_table(runs))


def _table(runs: Mapping[str, Sizes]) -> list[list[Cell]]:
    head: list[Cell] = ["size"]
    for name in runs:
        before = f"{name}: " if len(runs) > 1 else ""
        head += [f"{before}objects", "AP@.5:.95", "recall"]
    rows = [head]
    for size in SIZES:
        row: list[Cell] = [size]
        for run in runs.values():
            figures = (Score(value(run.ap[size])), Score(value(run.recall[size])))
            row += [f"{run.objects[size]:,}", *figures]
        rows.append(row)
    return rows
