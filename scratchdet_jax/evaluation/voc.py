"""PASCAL VOC average precision.

The algorithm is that of the VOCdevkit's `VOCevaldet`: boxes are in pixels with inclusive ends, so a
width is xmax − xmin + 1; IoU ≥ 0.5 is a match; a difficult object is neither a hit nor a miss.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from scratchdet_jax.evaluation.detections import (
    FlatDetections,
    FlatGroundTruth,
    ImageDetections,
    ImageGroundTruth,
    flatten_detections,
    flatten_ground_truth,
)

Metric = Literal["11point", "area"]


class VocResult(NamedTuple):
    """Average precision of a split.

    Attributes:
        mean: mean of `per_class` over the classes with ground truth; NaN without any.
        per_class: AP in [0, 1] by class name; None for a class without ground truth that counts.
        ground_truths: number of boxes that count (not difficult), by class name.
        detections: number of detections, by class name.
    """

    mean: float
    per_class: dict[str, float | None]
    ground_truths: dict[str, int]
    detections: dict[str, int]

    def record(self) -> dict[str, Any]:
        """Returns "mAP", and "AP" by class, as in metrics.jsonl; None where undefined."""
        return {"mAP": None if np.isnan(self.mean) else self.mean, "AP": self.per_class}


def average_precision(
    recall: np.ndarray, precision: np.ndarray, metric: Metric = "11point"
) -> float:
    """Computes the AP of a precision–recall curve.

    Args:
        recall: float [n], ascending.
        precision: float [n].
        metric: "11point" (VOC 2007: the mean of the best precision at recall ≥ 0, 0.1, …, 1) or
            "area" (VOC 2010 and later: the area under the monotonically decreasing envelope).
    """
    recall, precision = np.asarray(recall, np.float64), np.asarray(precision, np.float64)
    curve = Curve(recall, precision)
    if metric == "11point":
        # The reference evaluators' thresholds are multiples of 0.1 in double precision: 3 * 0.1 is
        # 0.30000000000000004, which a recall of exactly 3 in 10 does not reach.
        return float(best_precision(curve, np.arange(11) * 0.1).mean())
    return float(np.sum(np.diff(recall, prepend=0.0) * best_precision(curve, recall)))


def evaluate(
    detections: Mapping[str, ImageDetections],
    ground_truth: Mapping[str, ImageGroundTruth],
    class_names: Sequence[str],
    *,
    iou_threshold: float = 0.5,
    metric: Metric = "11point",
) -> VocResult:
    """Scores the detections of a split as the VOCdevkit does.

    In descending order of score, each detection is assigned to the ground truth of its class and
    image with the largest IoU. If that IoU is below the threshold, the detection is a false
    positive. Otherwise it is ignored if the box is difficult, and a false positive if the box is
    already assigned. Equal scores are in the order of the images in the ground truth, then in the
    order given. (The devkit uses the order of the lines of the file, which is the same for files
    from `write_detections`.)

    Args:
        detections: by image id; images without an entry have no detections.
        ground_truth: by image id, all images of the split.
        class_names: [C]; label i is class_names[i − 1].
        iou_threshold: smallest IoU of a match.
        metric: see `average_precision`.

    Raises:
        UserError: an image is not in the ground truth, a label is out of range, or a score or a box
            is not finite.
    """
    per_class, ground_truths, counts = {}, {}, {}
    for name, found, truth in _by_class(detections, ground_truth, class_names):
        ground_truths[name] = int(np.sum(~truth.ignore))
        counts[name] = len(found.scores)
        curve = _curve(found, truth, iou_threshold)
        per_class[name] = curve and average_precision(curve.recall, curve.precision, metric)
    scored = [value for value in per_class.values() if value is not None]
    mean = float(np.mean(scored)) if scored else float("nan")
    return VocResult(mean, per_class, ground_truths, counts)


class Curve(NamedTuple):
    """Recall and precision of a class, float64 [n], after each of its detections by score."""

    recall: np.ndarray
    precision: np.ndarray


def curves(
    detections: Mapping[str, ImageDetections],
    ground_truth: Mapping[str, ImageGroundTruth],
    class_names: Sequence[str],
    iou_threshold: float = 0.5,
) -> dict[str, Curve | None]:
    """Returns the precision–recall curves behind the AP of `evaluate`, for the same arguments.

    None stands for a class without ground truth that counts.
    """
    return {
        name: _curve(found, truth, iou_threshold)
        for name, found, truth in _by_class(detections, ground_truth, class_names)
    }


def best_precision(curve: Curve, recalls: np.ndarray) -> np.ndarray:
    """Returns the best precision at each recall or any higher one; 0 beyond the last recall."""
    envelope = np.append(np.maximum.accumulate(curve.precision[::-1])[::-1], 0.0)
    return envelope[np.searchsorted(curve.recall, recalls, side="left")]


def _by_class(
    detections: Mapping[str, ImageDetections],
    ground_truth: Mapping[str, ImageGroundTruth],
    class_names: Sequence[str],
) -> Iterator[tuple[str, FlatDetections, FlatGroundTruth]]:
    truth = flatten_ground_truth(ground_truth, len(class_names))
    found = flatten_detections(detections, ground_truth, len(class_names))
    for label, name in enumerate(class_names, start=1):
        yield (
            name,
            FlatDetections(*(column[found.labels == label] for column in found)),
            FlatGroundTruth(*(column[truth.labels == label] for column in truth)),
        )


def _curve(found: FlatDetections, truth: FlatGroundTruth, iou_threshold: float) -> Curve | None:
    """Returns the curve of one class; None without ground truth that counts."""
    positives = int(np.sum(~truth.ignore))
    if positives == 0:
        return None
    order = np.argsort(-found.scores, kind="stable")
    best_iou, best = _best_overlaps(
        found.image[order], found.boxes_pixels[order], truth.image, truth.boxes_pixels
    )
    hits = best_iou >= iou_threshold
    ignored = hits & truth.ignore[best]
    # A box belongs to the best-scored detection assigned to it.
    rows = np.flatnonzero(hits)
    _, first = np.unique(best[rows], return_index=True)
    true_positive = np.zeros(len(order), bool)
    true_positive[rows[first]] = True
    true_positive &= ~ignored
    true_positives = np.cumsum(true_positive)
    false_positives = np.cumsum(~true_positive & ~ignored)
    # If all detections so far are ignored, the precision is 0/0, counted as 0.
    precision = true_positives / np.maximum(true_positives + false_positives, 1)
    return Curve(true_positives / positives, precision)


def _best_overlaps(
    image: np.ndarray, boxes: np.ndarray, truth_image: np.ndarray, truth_boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Finds, for each detection, the ground truth of its image with the largest IoU.

    All pairs of a detection and a ground truth of its image are put in one array, grouped by
    detection, and each group is reduced.

    Args:
        image: int [n], of the detections.
        boxes: float [n, 4], of the detections.
        truth_image: int [m], ascending, m ≥ 1.
        truth_boxes: float [m, 4].

    Returns:
        IoU float [n], −1 if the image has no ground truth, and the index of the ground truth
        int [n], the first if several are equal, 0 if there is none.
    """
    start = np.searchsorted(truth_image, image, side="left")
    count = np.searchsorted(truth_image, image, side="right") - start
    rows = np.flatnonzero(count)
    best_iou, best = np.full(len(image), -1.0), np.zeros(len(image), np.int64)
    if not rows.size:
        return best_iou, best
    count, start = count[rows], start[rows]
    offset = np.cumsum(count) - count
    owner = np.repeat(np.arange(rows.size), count)
    pair_truth = start[owner] + np.arange(owner.size) - offset[owner]
    overlap = _pairwise_iou(boxes[rows][owner], truth_boxes[pair_truth])
    best_iou[rows] = np.maximum.reduceat(overlap, offset)
    at_best = np.where(overlap == best_iou[rows][owner], pair_truth, len(truth_image))
    best[rows] = np.minimum.reduceat(at_best, offset)
    return best_iou, best


def _pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes the IoU [n] of boxes a and b [n, 4] in pixels, with inclusive ends."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + 1
    intersection = np.prod(np.maximum(sides, 0), axis=1)
    area_a = np.prod(a[:, 2:] - a[:, :2] + 1, axis=1)
    area_b = np.prod(b[:, 2:] - b[:, :2] + 1, axis=1)
    union = area_a + area_b - intersection
    return np.where(intersection > 0, intersection / np.where(intersection > 0, union, 1), 0.0)
