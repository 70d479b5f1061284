"""COCO average precision by pycocotools."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from scratchdet_jax.evaluation.detections import (
    FlatDetections,
    FlatGroundTruth,
    ImageDetections,
    ImageGroundTruth,
    flatten_detections,
    flatten_ground_truth,
)

# In the order of COCOeval.stats; s, m, l are areas below 32², up to 96², and above.
METRICS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)

MAP_KEY = "mAP@.5:.95"
"""Names COCO's AP where it stands beside a mAP of VOC; it also asks how well the boxes fit."""


class CocoResult(NamedTuple):
    """COCO's summary of a split.

    Attributes:
        metrics: value in [0, 1] for each name in `METRICS`, or of "AP" alone; NaN where no ground
            truth counts (pycocotools returns −1).
        per_class: AP over IoU 0.5:0.95 by class name; None for a class without ground truth.
    """

    metrics: dict[str, float]
    per_class: dict[str, float | None]

    @property
    def mean(self) -> float:
        """Returns AP over IoU 0.5:0.95; NaN where no ground truth counts."""
        return self.metrics["AP"]

    def record(self) -> dict[str, Any]:
        """Returns the results as metrics.jsonl stores them.

        "mAP" and the other metrics by name, and "AP" by class; an undefined value is None.
        """
        figures = {
            "mAP" if name == "AP" else name: None if np.isnan(value) else value
            for name, value in self.metrics.items()
        }
        return {**figures, "AP": self.per_class}


def evaluate(
    detections: Mapping[str, ImageDetections],
    ground_truth: Mapping[str, ImageGroundTruth],
    class_names: Sequence[str],
    *,
    only_ap: bool = False,
) -> CocoResult:
    """Scores detections against ground truth held in memory.

    An ignored box is a crowd. Objects are small, medium or large by the area of their box. An
    annotation file with segmentation areas therefore gives different values for the metrics by
    size (see `evaluate_rows`), and the same for all others.

    Takes the arguments of `voc.evaluate`. With `only_ap`, it computes "AP" alone, in about a third
    of the time.

    Raises:
        UserError: an image is not in the ground truth, a label is out of range, or a score or a box
            is not finite.
    """
    truth = flatten_ground_truth(ground_truth, len(class_names))
    found = flatten_detections(detections, ground_truth, len(class_names))
    annotations = _entries(truth, "iscrowd", truth.ignore.astype(int))
    results = _entries(found, "score", found.scores)
    categories = list(enumerate(class_names, start=1))
    return evaluate_rows(len(ground_truth), annotations, results, categories, only_ap=only_ap)


def evaluate_rows(
    image_count: int,
    truth: list[dict[str, Any]],
    found: list[dict[str, Any]],
    categories: Sequence[tuple[int, str]],
    *,
    only_ap: bool = False,
) -> CocoResult:
    """Scores entries of COCO's files by pycocotools; images are numbered from 0.

    Args:
        image_count: number of images; equal scores are in the order of their numbers.
        truth: "image_id" (the number), "category_id", "bbox" (x, y, width, height) and "iscrowd" of
            each annotation; "area", if it is not that of the box.
        found: "image_id" (the number), "category_id", "bbox" and "score" of each detection.
        categories: (id, class name); every id in the rows is one of them.
        only_ap: compute "AP" alone.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        indexed = (_index(image_count, entries, categories) for entries in (truth, found))
        evaluation = COCOeval(*indexed, "bbox")
        if only_ap:  # objects of all sizes, 100 detections
            evaluation.params.areaRng = evaluation.params.areaRng[:1]
            evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
            evaluation.params.maxDets = evaluation.params.maxDets[-1:]
        evaluation.evaluate()
        evaluation.accumulate()
        if not only_ap:
            evaluation.summarize()
    per_class = _per_class(evaluation, categories)
    if only_ap:
        defined = [value for value in per_class.values() if value is not None]
        return CocoResult({"AP": float(np.mean(defined)) if defined else np.nan}, per_class)
    stats = np.where(np.asarray(evaluation.stats) < 0, np.nan, evaluation.stats)
    return CocoResult(dict(zip(METRICS, map(float, stats), strict=True)), per_class)


def _per_class(
    evaluation: COCOeval, categories: Sequence[tuple[int, str]]
) -> dict[str, float | None]:
    """Returns AP by class name; None for a class without ground truth that counts."""
    # precision [IoU, recall, class in order of id, area range, max detections]; −1: no ground truth
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class: dict[str, float | None] = {}
    ids = sorted(number for number, _ in categories)
    for category_id, name in categories:
        values = precision[:, :, ids.index(category_id)]
        values = values[values > -1]
        per_class[name] = float(values.mean()) if values.size else None
    return per_class


def _index(
    image_count: int, entries: list[dict[str, Any]], categories: Sequence[tuple[int, str]]
) -> COCO:
    """Builds a COCO object of annotations or detections; `loadRes` cannot if there are none.

    The entries are numbered from 1, because id 0 means "no match" to COCOeval.
    """
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(image_count)],
        "categories": [{"id": number, "name": name} for number, name in categories],
        "annotations": [
            {"area": entry["bbox"][2] * entry["bbox"][3], **entry, "id": number}
            for number, entry in enumerate(entries, start=1)
        ],
    }
    coco.createIndex()
    return coco


def _entries(
    table: FlatGroundTruth | FlatDetections, key: str, values: np.ndarray
) -> list[dict[str, Any]]:
    """Converts rows to entries of COCO's files; a class's category is its label."""
    ymin, xmin, ymax, xmax = table.boxes_pixels.T
    boxes_xywh = np.stack([xmin, ymin, xmax - xmin, ymax - ymin], axis=-1)
    columns = (table.image, table.labels, boxes_xywh, values)
    return [
        {"image_id": image, "category_id": label, "bbox": box, key: value}
        for image, label, box, value in zip(*(c.tolist() for c in columns), strict=True)
    ]
