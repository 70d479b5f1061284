"""The images on which a run does worst and best, with ground truth side by side."""

from typing import Any

import numpy as np

from scratchdet_jax.data.images import decode_to_canvas
from scratchdet_jax.evaluation.detections import ImageGroundTruth
from scratchdet_jax.evaluation.drawing import draw_detections
from scratchdet_jax.reports.page.pictures import Picture, to_picture
from scratchdet_jax.reports.report.study import RunStudy
from scratchdet_jax.reports.tide import totals

_SIDE = 440  # pixels of the longer side of a picture


Shown = tuple[str, tuple[Picture, Picture] | None]
"""A caption, and ground truth beside detections; None for an image that cannot be drawn."""


def measure(study: RunStudy, count: int) -> tuple[dict[str, Any], list[Shown], list[Shown]]:
    """Ranks the images of the split by F1, and draws `count` of the worst and of the best.

    F1 is 2 · correct / (2 · correct + false + missed), by TIDE's matching, from the threshold on,
    without detections on ignored objects.

    Returns:
        The threshold, how many images with objects or detections there are (`judged`), and how
        many of them have no error. The worst: the lowest F1 first, of equals the most errors; only
        images with an error. The best: the highest F1 first, of equals the most correct; only
        images with a correct detection that are not among the worst.
    """
    names = list(study.evaluation.ground_truth)
    true, false, missed = totals(study.analysis, study.threshold, len(names))
    errors, judged = false + missed, 2 * true + false + missed
    f1 = 2 * true / np.maximum(judged, 1)
    worst = [i for i in np.lexsort((-errors, f1)) if errors[i]][:count]
    best = [i for i in np.lexsort((-true, -f1)) if true[i] and i not in worst][:count]
    places = {study.source.image_id(i): i for i in range(len(study.source))}

    def shown(i: int) -> Shown:
        counts = f"{true[i]} correct, {false[i]} false, {missed[i]} missed"
        return f"{names[i]}: F1 {f1[i]:.2f}; {counts}", _pair(study, names[i], places[names[i]])

    figures = {
        "threshold": study.threshold,
        "without_error": int(np.sum((judged > 0) & (errors == 0))),
        "judged": int(np.sum(judged > 0)),
    }
    return figures, [*map(shown, worst)], [*map(shown, best)]


def _pair(study: RunStudy, name: str, position: int) -> tuple[Picture, Picture] | None:
    truth, found = study.evaluation.ground_truth[name], study.evaluation.detections[name]
    real, shown = ~truth.ignore & (truth.labels > 0), found.scores >= study.threshold
    try:
        example = study.source[position]
        image, _ = decode_to_canvas(example["image"], (_SIDE, _SIDE), example["orientation"])
        scale = np.tile(np.divide(image.shape[:2], study.evaluation.sizes[name]), 2)
        truth = truth._replace(boxes_pixels=truth.boxes_pixels * scale)
        left = draw_detections(
            image,
            truth.boxes_pixels[real],
            truth.labels[real],
            None,
            study.class_names,
            ground_truth=ImageGroundTruth(*(column[truth.ignore] for column in truth)),
        )
        right = draw_detections(
            image,
            found.boxes_pixels[shown] * scale,
            found.labels[shown],
            found.scores[shown],
            study.class_names,
        )
    except Exception:  # the report is worth more than a picture
        return None
    return to_picture(left, f"{name}: ground truth"), to_picture(right, f"{name}: detections")
