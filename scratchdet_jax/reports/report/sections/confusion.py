"""The confusion matrix: which class is taken for which."""

from typing import NamedTuple

import numpy as np

from scratchdet_jax.reports.confusion import confusion_matrix
from scratchdet_jax.reports.page.wording import percent
from scratchdet_jax.reports.report.study import RunStudy

_IOU = 0.5
_BACKGROUND = "background"


class Confusion(NamedTuple):
    """A matrix at a score threshold, IoU 0.5.

    Attributes:
        class_names: of rows and columns, the background last.
        threshold: lowest score of a detection.
        matrix: [C + 1, C + 1] counts; row: ground truth, column: detection.
    """

    class_names: list[str]
    threshold: float
    matrix: list[list[int]]

    @classmethod
    def measure(cls, study: RunStudy) -> "Confusion":
        """Pairs detections with ground truth."""
        evaluation = study.evaluation
        matrix = confusion_matrix(
            evaluation.detections,
            evaluation.ground_truth,
            len(study.class_names),
            score=study.threshold,
            iou=_IOU,
        )
        last = np.roll(matrix, (-1, -1), axis=(0, 1))  # 0, the background, to the end
        return cls([*study.class_names, _BACKGROUND], study.threshold, last.tolist())

    def pairs(self) -> list[tuple[str, str, int, float]]:
        """Returns the confusions without the background, the most frequent first.

        Each is a class, the class it was taken for, how often, and the share of its objects.
        """
        found = []
        for row, name in enumerate(self.class_names[:-1]):
            total = sum(self.matrix[row])
            for column, other in enumerate(self.class_names[:-1]):
                count = self.matrix[row][column]
                if row != column and count:
                    found.append((name, other, count, count / total))
        return sorted(found, key=lambda pair: -pair[2])

    def pair_rows(self, most: int) -> list[list[str]]:
        """Returns the most frequent confusions; only the head if there are none."""
        rows = [
            [name, other, f"{count:,}", percent(share)]
            for name, other, count, share in self.pairs()[:most]
        ]
        return [["class", "taken for", "objects", "share"], *rows]
