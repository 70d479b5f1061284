"""The constant box: what one box per class scores that is the same on every image.

No image is looked at, so this is what a detector has to beat. Where it is high, the objects are
large and in the same place, and a good average precision says little about the detector.
"""

import collections
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from scratchdet_jax.evaluation import coco, voc
from scratchdet_jax.evaluation.detections import (
    FlatGroundTruth,
    ImageDetections,
    ImageGroundTruth,
    flatten_ground_truth,
    overlaps,
)

_IOU = 0.5  # of a match, when a box is chosen
_CANDIDATES = 256  # ground-truth boxes of a class among which one is chosen
_GUESSES = 500_000  # images × classes; COCO's val split has 400,000
_OVERLAPS_AT_A_TIME = 1_000_000
_TOGETHER = 100  # guesses of a class in a spare image: as many as COCO scores

_NO_BOXES = ImageGroundTruth(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool))


class ConstantBox(NamedTuple):
    """The boxes and their average precision by the metric of the evaluation.

    Attributes:
        mean: mAP in [0, 1]; NaN where no ground truth counts.
        per_class: AP by class name; None for a class without ground truth that counts.
        boxes: the box of each class, [ymin, xmin, ymax, xmax] in [0, 1], or None.
        images: how many images were scored: all, or as many as were drawn at random.
    """

    mean: float
    per_class: dict[str, float | None]
    boxes: dict[str, list[float] | None]
    images: int

    def record(self) -> dict[str, Any]:
        """Returns the fields for a JSON file; undefined values are None."""
        return {
            "mAP": None if np.isnan(self.mean) else self.mean,
            "AP": self.per_class,
            "boxes": self.boxes,
            "images": self.images,
        }

    def line(self, label: str, images: int) -> str | None:
        """Returns the mAP in one line, with the metric's label; None if it is undefined.

        `images` is the number of images of the split.
        """
        if np.isnan(self.mean):
            return None
        drawn = f"each of {self.images:,} images drawn at random"
        where = drawn if self.images < images else "every image"
        return (
            f"for comparison, one constant box per class on {where}: mAP {self.mean:.4f} ({label})"
        )


def constant_box(
    ground_truth: Mapping[str, ImageGroundTruth],
    sizes: Mapping[str, Sequence[int]],
    class_names: Sequence[str],
    metric: str,
) -> ConstantBox:
    """Chooses a box for each class (see `choose_boxes`) and scores it on every image.

    A guess has no score, but the evaluators need an order: the images are shuffled, because in a
    split sorted by class the order of the images would be knowledge. With more than 500,000
    guesses, images are drawn at random. Every run draws the same. In few images, VOC's 11 points
    give a lucky first guess up to 1/11.

    Takes the ground truth as `voc.evaluate`; `sizes` are height and width in pixels by image id;
    `metric` is as in `config.eval.metric`.
    """
    ids = list(ground_truth)
    most = max(_GUESSES // max(len(class_names), 1), 1)
    drawn = [ids[i] for i in np.random.default_rng(0).permutation(len(ids))[:most]]
    truth = {name: ground_truth[name] for name in drawn}
    scales = np.array([(*sizes[name], *sizes[name]) for name in drawn], np.float64).reshape(-1, 4)
    flat = flatten_ground_truth(truth, len(class_names))
    boxes = choose_boxes(
        flat._replace(boxes_pixels=flat.boxes_pixels / scales[flat.image]), len(class_names)
    )
    guesses, spare = _guesses(flat, boxes, scales)
    numbered = dict(zip(map(str, range(len(drawn))), truth.values(), strict=True))
    numbered |= dict.fromkeys(spare, _NO_BOXES)
    result: coco.CocoResult | voc.VocResult
    if metric == "coco":
        result = coco.evaluate(guesses, numbered, class_names, only_ap=True)
    else:
        kind: voc.Metric = "area" if metric == "voc_area" else "11point"
        result = voc.evaluate(guesses, numbered, class_names, metric=kind)
    chosen = {
        name: box.round(4).tolist() if np.isfinite(box[0]) else None
        for name, box in zip(class_names, boxes, strict=True)
    }
    return ConstantBox(result.mean, result.per_class, chosen, len(drawn))


def choose_boxes(truth: FlatGroundTruth, class_count: int) -> np.ndarray:
    """Chooses for each class the ground-truth box that meets a box of the class in most images.

    Boxes meet at IoU ≥ 0.5; of equals, the box with the largest sum of its best IoU in each image
    is chosen, then the first. If a class has more than 256 boxes, 256 of them are drawn at random
    as candidates. Ignored boxes take no part.

    Args:
        truth: `boxes_pixels` in [0, 1]; `image` ascending.
        class_count: C.

    Returns:
        float64 [C, 4]; NaN for a class without boxes.
    """
    chosen = np.full((class_count, 4), np.nan)
    random = np.random.default_rng(0)
    for label in range(1, class_count + 1):
        own = np.flatnonzero((truth.labels == label) & ~truth.ignore)
        if not own.size:
            continue
        boxes, images = truth.boxes_pixels[own], truth.image[own]
        candidates = boxes
        if len(boxes) > _CANDIDATES:
            candidates = boxes[np.sort(random.choice(len(boxes), _CANDIDATES, replace=False))]
        starts = np.flatnonzero(np.diff(images, prepend=-1))
        rows = max(_OVERLAPS_AT_A_TIME // len(boxes), 1)
        parts = [candidates[i : i + rows] for i in range(0, len(candidates), rows)]
        best = np.concatenate(  # [candidates, images]
            [np.maximum.reduceat(overlaps(part, boxes), starts, axis=1) for part in parts]
        )
        met = np.sum(best >= _IOU, axis=1)
        total = np.where(met == np.max(met), best.sum(axis=1), -1)
        chosen[label - 1] = candidates[np.argmax(total)]
    return chosen


def _guesses(
    truth: FlatGroundTruth, boxes: np.ndarray, scales: np.ndarray
) -> tuple[dict[str, ImageDetections], list[str]]:
    """Puts every class's box on every image, with falling scores from image to image.

    A guess in an image without its class is wrong wherever it is. So up to 100 such guesses of a
    class share a spare image without ground truth. The result is the same, and pycocotools, which
    takes its time for each image and class, is done in a fraction of it.

    Args:
        truth: of N images.
        boxes: [C, 4], normalised; NaN for a class without guesses.
        scales: [N, 4], height, width, height, width of the images.

    Returns:
        The guesses by the image's number as text, from 0; the spare images follow from N.
    """
    count = len(scales)
    has = np.zeros((count, len(boxes)), bool)
    has[truth.image, truth.labels - 1] = True
    pairs = collections.defaultdict(list)  # (image, class) by the number of the place
    for column in np.flatnonzero(np.isfinite(boxes[:, 0])).tolist():
        absent = itertools.count()
        for image, present in enumerate(has[:, column].tolist()):
            place = image if present else count + next(absent) // _TOGETHER
            pairs[place].append((image, column))
    found = {}
    for place, own in pairs.items():
        image, column = np.array(own).T
        found[str(place)] = ImageDetections(
            boxes[column] * scales[image], 1 - image / count, column + 1
        )
    return found, [str(place) for place in sorted(pairs) if place >= count]
