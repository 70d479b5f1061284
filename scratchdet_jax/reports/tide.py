"""TIDE: why a detector loses average precision (Bolya et al., ECCV 2020).

Every detection that is not correct gets one kind of error, and ground truth that no detection
could have found by a correction is missed. The cost of a kind is the AP gained if its errors alone
were corrected. Kinds, thresholds, matching and AP are those of the authors' program, tidecv. But
classes without ground truth are left out of the mean (tidecv counts them as AP 0 if they have
detections), and all detections count (tidecv takes 100 of an image by default).
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from scratchdet_jax.evaluation import voc
from scratchdet_jax.evaluation.detections import (
    FlatDetections,
    FlatGroundTruth,
    ImageDetections,
    ImageGroundTruth,
    flatten_detections,
    flatten_ground_truth,
    overlaps,
)

FOREGROUND, BACKGROUND = 0.5, 0.1  # IoU
KINDS = ("classification", "localization", "both", "duplicate", "background", "missed")
CORRECT = -1
_CLASSIFICATION, _LOCALIZATION, _BOTH, _DUPLICATE, _BACKGROUND = range(5)
_RECALLS = np.arange(101) / 100


class Analysis(NamedTuple):
    """What became of the n detections and m boxes of a split.

    Attributes:
        found: the detections, by image, in each image by descending score.
        truth: the ground truth, by image.
        kind: int [n], CORRECT or an index in KINDS.
        target: int [n], the ground truth that the correction of an error of classification or
            localization makes a hit; −1 where the correction removes the detection.
        ignored: bool [n], does not count; never correct.
        hit: bool [m], has a correct detection.
        missed: bool [m], has neither a correct detection nor one that a correction makes a hit.
    """

    found: FlatDetections
    truth: FlatGroundTruth
    kind: np.ndarray
    target: np.ndarray
    ignored: np.ndarray
    hit: np.ndarray
    missed: np.ndarray


class Tide(NamedTuple):
    """The errors of a detector; every cost is the AP gained in [0, 1].

    Attributes:
        ap: AP at IoU 0.5; NaN without ground truth that counts.
        costs: by kind, if the errors of this kind alone are corrected.
        counts: by kind, errors that are not ignored.
        false_positives: the cost of all detections that are not correct.
        false_negatives: the cost of all ground truth without a correct detection.
    """

    ap: float
    costs: dict[str, float]
    counts: dict[str, int]
    false_positives: float
    false_negatives: float


def analyse(
    detections: Mapping[str, ImageDetections],
    ground_truth: Mapping[str, ImageGroundTruth],
    class_count: int,
) -> Analysis:
    """Finds the kind of every detection and the missed ground truth.

    Takes the arguments of `voc.evaluate`; `class_count` is C.

    Raises:
        UserError: an image is not in the ground truth, a label is out of range, or a value is not
            finite.
    """
    truth = flatten_ground_truth(ground_truth, class_count)
    found = flatten_detections(detections, ground_truth, class_count)
    order = np.lexsort((-found.scores, found.image))  # stable
    found = FlatDetections(*(column[order] for column in found))
    kind = np.full(len(order), _BACKGROUND)
    target = np.full(len(order), -1)
    ignored = np.zeros(len(order), bool)
    hit, corrected = np.zeros((2, len(truth.labels)), bool)
    ends = np.arange(len(ground_truth) + 1)
    found_ends, truth_ends = (np.searchsorted(image, ends) for image in (found.image, truth.image))
    for i in range(len(ground_truth)):
        rows, boxes = slice(*found_ends[i : i + 2]), slice(*truth_ends[i : i + 2])
        if rows.start == rows.stop or boxes.start == boxes.stop:
            continue
        kind[rows], wanted, ignored[rows], hit[boxes] = _image(
            FlatDetections(*(column[rows] for column in found)),
            FlatGroundTruth(*(column[boxes] for column in truth)),
        )
        asking = np.flatnonzero((wanted >= 0) & ~hit[boxes][wanted])
        # The highest score of all errors that ask for a box is the first: it gets the box.
        got, first = np.unique(wanted[asking], return_index=True)
        target[rows][asking[first]] = boxes.start + got
        corrected[boxes][got] = True
    return Analysis(
        found, truth, kind, target, ignored, hit, missed=~hit & ~corrected & ~truth.ignore
    )


def summarize(analysis: Analysis, class_count: int) -> Tide:
    """Corrects each kind alone and computes what that gains; see KINDS.

    An error of classification or localization becomes a hit, unless its box is taken; errors of
    both, duplicates and background are removed; missed boxes are no longer counted.
    """
    found, truth, kind, target, ignored, hit, missed = analysis
    count = functools.partial(np.bincount, minlength=class_count + 1)
    positives = count(truth.labels[~truth.ignore])
    classes = np.flatnonzero(positives)
    correct = kind == CORRECT
    counts = {name: int(np.sum((kind == i) & ~ignored)) for i, name in enumerate(KINDS[:-1])}
    counts[KINDS[-1]] = int(missed.sum())

    def ap(
        labels: np.ndarray = found.labels,
        scores: np.ndarray = found.scores,
        hits: np.ndarray = correct,
        kept: np.ndarray = ~ignored,
        counted: np.ndarray = positives,
    ) -> float:
        """Returns the mean over the classes that have ground truth or detections left."""
        rows = np.argsort(-scores, kind="stable")
        rows = rows[kept[rows]]
        own = {label: hits[rows[labels[rows] == label]] for label in classes.tolist()}
        values = [
            _average_precision(hit, int(counted[label]))
            for label, hit in own.items()
            if counted[label] or len(hit)
        ]
        return float(np.mean(values)) if values else 0.0 if len(classes) else float("nan")

    before = ap()
    costs = {}
    for i, name in enumerate(KINDS[:-1]):
        errors = kind == i
        made = errors & (target >= 0)
        labels = found.labels.copy()
        labels[made] = truth.labels[target[made]]
        costs[name] = ap(labels, hits=correct | made, kept=(~ignored & ~errors) | made)
    costs[KINDS[-1]] = ap(counted=positives - count(truth.labels[missed]))
    unfound = count(truth.labels[~hit & ~truth.ignore])
    return Tide(
        before,
        {name: max(after - before, 0.0) for name, after in costs.items()},
        counts,
        ap(scores=correct.astype(float)) - before,
        ap(counted=positives - unfound) - before,
    )


def _image(
    found: FlatDetections, truth: FlatGroundTruth
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns kind, wanted box and `ignored` of an image's detections, and `hit` of its boxes."""
    iou = np.where(truth.ignore, 0.0, overlaps(found.boxes_pixels, truth.boxes_pixels))
    same = found.labels[:, None] == truth.labels
    own, other = iou * same, iou * ~same
    best_own, best_other = own.max(axis=1), other.max(axis=1)
    # The later of these rules win.
    kind = np.where(iou.max(axis=1) > BACKGROUND, _BOTH, _BACKGROUND)
    kind[best_own >= FOREGROUND] = _DUPLICATE
    kind[best_other >= FOREGROUND] = _CLASSIFICATION
    kind[(best_own >= BACKGROUND) & (best_own <= FOREGROUND)] = _LOCALIZATION
    wanted = np.where(kind == _CLASSIFICATION, other.argmax(axis=1), own.argmax(axis=1))
    hit = np.zeros(len(truth.labels), bool)
    for i in np.flatnonzero(best_own >= FOREGROUND):
        box = own[i].argmax()
        if own[i, box] >= FOREGROUND:
            kind[i], hit[box], own[:, box] = CORRECT, True, 0.0
    wanted[(kind != _CLASSIFICATION) & (kind != _LOCALIZATION)] = -1
    inside = _share_inside(found.boxes_pixels, truth.boxes_pixels) > FOREGROUND
    on_ignored = (inside & same & truth.ignore).any(axis=1)
    return kind, wanted, on_ignored & (kind != CORRECT), hit


def _share_inside(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Returns the share of each box's area [n, 4] inside each region [m, 4], float64 [n, m]."""
    low = np.maximum(boxes[:, None, :2], regions[:, :2])
    high = np.minimum(boxes[:, None, 2:], regions[:, 2:])
    inside = np.maximum(high - low, 0).prod(axis=-1)
    area = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=-1)[:, None]
    return np.divide(inside, area, out=np.zeros_like(inside), where=area > 0)


def _average_precision(hits: np.ndarray, positives: int) -> float:
    """Returns the AP of a class's detections, bool [n] by descending score, at 101 recalls."""
    if not positives:
        return 0.0
    true = np.cumsum(hits)
    curve = voc.Curve(true / positives, true / np.arange(1, len(hits) + 1))
    return float(voc.best_precision(curve, _RECALLS).mean())


def totals(
    analysis: Analysis, threshold: float, images: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts the correct, false and missed [images] of each image, from a score on.

    Matching goes by descending score, so detections below the threshold change nothing above it.
    """
    found, truth = analysis.found, analysis.truth
    shown = (found.scores >= threshold) & ~analysis.ignored
    correct = shown & (analysis.kind == CORRECT)
    true = np.bincount(found.image[correct], minlength=images)
    false = np.bincount(found.image[shown & ~correct], minlength=images)
    objects = np.bincount(truth.image[~truth.ignore], minlength=images)
    return true, false, objects - true
