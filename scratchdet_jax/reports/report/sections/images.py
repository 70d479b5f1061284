"""The images on which a run does worst and best, with ground truth side by side."""

from typing import NamedTuple

import cv2
import numpy as np

from scratchdet_jax.data.images import decode_to_canvas
from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation.detections import ImageDetections, ImageGroundTruth
from scratchdet_jax.evaluation.drawing import draw_detections
from scratchdet_jax.reports.page.pictures import Picture, to_picture
from scratchdet_jax.reports.report.study import RunStudy
from scratchdet_jax.reports.tide import totals

_SIDE = 440  # pixels of the longer side of a picture


class Chosen(NamedTuple):
    """An image with what was found in it from the threshold on.

    Attributes:
        image_id: of the data set.
        index: its position in the split.
        f1: 2 · correct / (2 · correct + false + missed), by TIDE's matching.
        correct: detections, likewise false.
        false: see `correct`; without those on ignored objects.
        missed: objects.
        size: height and width of the image in pixels.
        detections: from the threshold on.
        truth: the annotated boxes.
    """

    image_id: str
    position: int
    f1: float
    correct: int
    false: int
    missed: int
    size: tuple[int, int]
    detections: ImageDetections
    truth: ImageGroundTruth

    @property
    def caption(self) -> str:
        """Returns name and counts."""
        return (
            f"{self.image_id}: F1 {self.f1:.2f}; {self.correct} correct, {self.false} false, "
            f"{self.missed} missed"
        )


class RankedImages(NamedTuple):
    """The images of a run with the lowest and the highest F1.

    Attributes:
        threshold: lowest score of a detection.
        without_error: images with objects or detections, and no error.
        judged: images with objects or detections.
        worst: the lowest F1 first, of equals the most errors; only images with an error.
        best: the highest F1 first, of equals the most correct; only images with a correct
            detection that are not among the worst.
        class_names: label i is class_names[i − 1].
    """

    threshold: float
    without_error: int
    judged: int
    worst: list[Chosen]
    best: list[Chosen]
    class_names: tuple[str, ...]

    @classmethod
    def measure(cls, study: RunStudy) -> "RankedImages":
        """Ranks the images of the split."""
        evaluation, names = study.evaluation, list(study.evaluation.ground_truth)
        true, false, missed = totals(study.analysis, study.threshold, len(names))
        errors, judged = false + missed, 2 * true + false + missed
        f1 = 2 * true / np.maximum(judged, 1)
        worst = [i for i in np.lexsort((-errors, f1)) if errors[i]][: study.chosen]
        best = [i for i in np.lexsort((-true, -f1)) if true[i] and i not in worst][: study.chosen]
        places = {study.source.image_id(i): i for i in range(len(study.source))}

        def chosen(i: int) -> Chosen:
            found = evaluation.detections[names[i]]
            shown = found.scores >= study.threshold
            return Chosen(
                names[i],
                places[names[i]],
                float(f1[i]),
                int(true[i]),
                int(false[i]),
                int(missed[i]),
                evaluation.sizes[names[i]],
                ImageDetections(*(column[shown] for column in found)),
                evaluation.ground_truth[names[i]],
            )

        return cls(
            study.threshold,
            int(np.sum((judged > 0) & (errors == 0))),
            int(np.sum(judged > 0)),
            list(map(chosen, worst)),
            list(map(chosen, best)),
            tuple(study.class_names),
        )

    def pictures(self, source: DetectionSource) -> dict[str, tuple[Picture, Picture] | None]:
        """Draws ground truth and detections of the chosen images, by id.

        None stands for an image that cannot be read.
        """
        return {one.image_id: self._pair(one, source) for one in (*self.worst, *self.best)}

    def _pair(self, one: Chosen, source: DetectionSource) -> tuple[Picture, Picture] | None:
        try:
            example = source[one.position]
            image, _ = decode_to_canvas(example["image"], (_SIDE, _SIDE), example["orientation"])
        except (UserError, ValueError, OSError, cv2.error):
            return None
        scale = np.tile(np.divide(image.shape[:2], one.size), 2)
        truth = one.truth._replace(boxes_pixels=one.truth.boxes_pixels * scale)
        real = ~truth.ignore & (truth.labels > 0)
        ignored = ImageGroundTruth(*(column[truth.ignore] for column in truth))
        left = draw_detections(
            image,
            truth.boxes_pixels[real],
            truth.labels[real],
            None,
            self.class_names,
            ground_truth=ignored,
        )
        found = one.detections
        boxes = found.boxes_pixels * scale
        right = draw_detections(image, boxes, found.labels, found.scores, self.class_names)
        return (
            to_picture(left, f"{one.image_id}: ground truth"),
            to_picture(right, f"{one.image_id}: detections"),
        )
