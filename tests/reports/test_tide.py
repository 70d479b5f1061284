"""TIDE against a slow, obvious program, and against tidecv where that is installed.

tidecv is not among the requirements. Where it is in FOLDER, with appdirs, seaborn and pandas:
PYTHONPATH=FOLDER python -m pytest tests/reports/test_tide.py
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchdet_jax.evaluation import coco
from scratchdet_jax.evaluation.detections import ImageDetections, ImageGroundTruth
from scratchdet_jax.reports.tide import CORRECT, KINDS, analyse, summarize, totals

CLASSES = 3
BOX = (10.0, 10.0, 50.0, 50.0)  # 40 × 40


def truth(*rows):
    """Rows (label, box[, ignore])."""
    return ImageGroundTruth(
        np.array([row[1] for row in rows], float).reshape(-1, 4),
        np.array([row[0] for row in rows], int),
        np.array([len(row) > 2 and row[2] for row in rows], bool),
    )


def found(*rows):
    """Rows (label, score, box)."""
    return ImageDetections(
        np.array([row[2] for row in rows], float).reshape(-1, 4),
        np.array([row[1] for row in rows], float),
        np.array([row[0] for row in rows], int),
    )


def tide(detections, ground_truth):
    return summarize(analyse(detections, ground_truth, CLASSES), CLASSES)


def moved(share):
    """BOX moved sideways by a share of its side: IoU (1 − share) / (1 + share)."""
    return (10.0, 10.0 + 40 * share, 50.0, 50.0 + 40 * share)


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([(1, 0.9, BOX)], "correct"),
        ([(2, 0.9, BOX)], "classification"),
        ([(1, 0.9, moved(0.5))], "localization"),  # IoU 1/3
        ([(2, 0.9, moved(0.5))], "both"),
        ([(1, 0.9, BOX), (1, 0.8, moved(0.1))], "duplicate"),
        ([(1, 0.9, moved(0.9))], "background"),  # IoU 0.05
        ([(2, 0.9, moved(0.9))], "background"),
        ([(1, 0.9, (60.0, 60.0, 80.0, 80.0))], "background"),
    ],
)
def test_every_kind(rows, kind):
    analysis = analyse({"a": found(*rows)}, {"a": truth((1, BOX))}, CLASSES)
    last = analysis.kind[-1]
    assert ("correct" if last == CORRECT else KINDS[last]) == kind
    assert analysis.missed.tolist() == [kind in ("both", "background")]


def test_an_image_without_detections_misses_everything():
    result = tide({}, {"a": truth((1, BOX), (2, moved(2.0)), (2, moved(4.0), True))})
    assert result.counts == {**dict.fromkeys(KINDS, 0), "missed": 2}
    assert (result.ap, result.false_positives) == (0.0, 0.0)


def test_without_ground_truth_there_is_no_ap():
    result = tide({"a": found((1, 0.9, BOX))}, {"a": truth()})
    assert np.isnan(result.ap) and result.counts["background"] == 1
    assert np.isnan(tide({}, {}).ap)


def test_a_corrected_class_finds_the_object():
    detections = {"a": found((2, 0.9, BOX)), "b": found((2, 0.8, BOX))}
    result = tide(detections, {"a": truth((1, BOX)), "b": truth((2, BOX))})
    # Class 2: a false detection before the right one; class 1: nothing found.
    assert result.ap == pytest.approx((0 + 0.5) / 2)
    assert result.costs["classification"] == pytest.approx(1 - 0.25)
    assert result.costs["missed"] == 0
    assert result.false_positives == pytest.approx((0 + 1) / 2 - 0.25)


def test_a_detection_on_an_ignored_box_does_not_count():
    inside = (12.0, 12.0, 30.0, 30.0)
    ground_truth = {"a": truth((1, BOX, True), (1, (60.0, 60.0, 90.0, 90.0)))}
    rows = [(1, 0.9, inside), (2, 0.8, inside), (1, 0.7, (60.0, 60.0, 90.0, 90.0))]
    analysis = analyse({"a": found(*rows)}, ground_truth, CLASSES)
    assert analysis.ignored.tolist() == [True, False, False]
    assert summarize(analysis, CLASSES).ap == 1.0
    assert [part.tolist() for part in totals(analysis, 0.5, 1)] == [[1], [1], [0]]
    assert [part.tolist() for part in totals(analysis, 0.75, 1)] == [[0], [1], [1]]


def random_split(seed, images=6, off_grid=0.0):
    """Boxes on a coarse grid, so that every kind of error and equal IoU occur; distinct scores.

    `off_grid`: largest distance of a corner from the grid.
    """
    rng = np.random.default_rng(seed)
    ground_truth, detections = {}, {}
    for i in range(images):
        corner = rng.integers(0, 6, (rng.integers(0, 6), 2)) * 10.0
        boxes = np.concatenate([corner, corner + rng.integers(2, 5, corner.shape) * 10.0], -1)
        labels = rng.integers(1, CLASSES + 1, len(boxes))
        boxes += off_grid * rng.random(boxes.shape)
        ignore = rng.random(len(boxes)) < 0.2
        ground_truth[str(i)] = ImageGroundTruth(boxes, labels, ignore)
        if rng.random() < 0.15:
            continue
        rows = rng.integers(0, len(boxes), rng.integers(0, 12)) if len(boxes) else []
        near = boxes[rows] + rng.integers(-2, 3, (len(rows), 4)) * 4.0 if len(rows) else []
        guesses = np.concatenate([np.reshape(near, (-1, 4)), [[5.0, 5.0, 30.0, 45.0]]])
        named = np.concatenate([labels[rows] if len(rows) else [], [1]]).astype(int)
        wrong = rng.random(len(named)) < 0.25
        named = np.where(wrong, rng.integers(1, CLASSES + 1, len(named)), named)
        detections[str(i)] = ImageDetections(guesses, rng.random(len(named)), named)
    return detections, ground_truth


def slow_tide(detections, ground_truth):
    """TIDE in plain loops: the AP and the cost of each kind, and of all false detections or misses.

    Written from the paper's definitions: errors are records that are corrected one kind at a time.
    """

    def area(box):
        return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)

    def common(a, b):
        return area((*np.maximum(a[:2], b[:2]), *np.minimum(a[2:], b[2:])))

    def iou(a, b):
        union = area(a) + area(b) - common(a, b)
        return common(a, b) / union if union else 0.0

    points, errors, counts = [], [], dict.fromkeys(range(1, CLASSES + 1), 0)
    missing, unfound = [], []
    for image_id, objects in ground_truth.items():
        boxes = list(zip(*objects, strict=True))
        real = [[box, label, False, []] for box, label, ignore in boxes if not ignore]
        regions = [(box, label) for box, label, ignore in boxes if ignore]
        for _, label, _, _ in real:
            counts[label] += 1
        rows = zip(*detections[image_id], strict=True) if image_id in detections else []
        rows = sorted(rows, key=lambda row: -row[1])
        wrong = []
        for box, score, label in rows:
            free = [r for r in real if r[1] == label and not r[2] and iou(box, r[0]) >= 0.5]
            if free:
                max(free, key=lambda r: iou(box, r[0]))[2] = True
                points.append((label, score, True))
            else:
                wrong.append((box, score, label))
        for box, score, label in wrong:
            own = max((r for r in real if r[1] == label), key=lambda r: iou(box, r[0]), default=0)
            other = max((r for r in real if r[1] != label), key=lambda r: iou(box, r[0]), default=0)
            best_own, best_other = (iou(box, r[0]) if r else 0.0 for r in (own, other))
            owner = None
            if own and 0.1 <= best_own <= 0.5:
                kind, owner = "localization", own
            elif best_other >= 0.5:
                kind, owner = "classification", other
            elif best_own >= 0.5:
                kind = "duplicate"
            elif max(best_own, best_other) <= 0.1:
                kind = "background"
            else:
                kind = "both"
            becomes = None
            if owner is not None and not owner[2]:
                if not owner[3]:
                    becomes = (owner[1], score, True)
                owner[3].append(kind)
            ignored = any(
                name == label and common(box, region) / area(box) > 0.5 for region, name in regions
            )
            errors.append((kind, None if ignored else (label, score, False), becomes))
        unfound += [label for _, label, used, _ in real if not used]
        missing += [label for _, label, used, asked in real if not used and not asked]

    classes = [label for label, count in counts.items() if count]

    def ap(points, counts):
        values = []
        for label in classes:
            own = sorted((p for p in points if p[0] == label), key=lambda p: -p[1])
            if not own and not counts[label]:
                continue
            curve = []
            for n in range(1, len(own) + 1):
                true = sum(p[2] for p in own[:n])
                curve.append((true / counts[label] if counts[label] else 0.0, true / n))
            at = [max((p for r, p in curve if r >= i / 100), default=0.0) for i in range(101)]
            values.append(np.mean(at) if counts[label] else 0.0)
        return np.mean(values) if values else 0.0

    def corrected(kind):
        changed = [after if name == kind else before for name, before, after in errors]
        return points + [point for point in changed if point]

    before = ap(corrected(None), counts)
    fewer = [
        {label: counts[label] - gone.count(label) for label in counts}
        for gone in (missing, unfound)
    ]
    costs = {kind: max(ap(corrected(kind), counts) - before, 0.0) for kind in KINDS[:-1]}
    costs["missed"] = max(ap(corrected(None), fewer[0]) - before, 0.0)
    ideal = [(label, float(hit), hit) for label, _, hit in corrected(None)]
    return before, costs, ap(ideal, counts) - before, ap(corrected(None), fewer[1]) - before


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_costs_equal_those_of_plain_loops(seed):
    detections, ground_truth = random_split(seed)
    result = tide(detections, ground_truth)
    ap, costs, false_positives, false_negatives = slow_tide(detections, ground_truth)
    if not any((~image.ignore).any() for image in ground_truth.values()):
        assert np.isnan(result.ap)
        return
    assert result.ap == pytest.approx(ap, abs=1e-12)
    assert result.costs == pytest.approx(costs, abs=1e-12)
    assert result.false_positives == pytest.approx(false_positives, abs=1e-12)
    assert result.false_negatives == pytest.approx(false_negatives, abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_the_ap_is_cocos_at_iou_half(seed):
    # Of equal IoU, and of exactly 0.5 with a crowd, COCO's rules are others than TIDE's.
    detections, ground_truth = random_split(seed, images=12, off_grid=1.0)
    names = [f"class {label}" for label in range(1, CLASSES + 1)]
    expected = coco.evaluate(detections, ground_truth, names).metrics["AP50"]
    assert tide(detections, ground_truth).ap == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(40))
def test_costs_equal_those_of_tidecv(seed):
    tidecv = pytest.importorskip("tidecv")
    detections, ground_truth = random_split(seed, images=12)
    expected_ap, costs, special, counts = by_tidecv(tidecv, detections, ground_truth)
    result = tide(detections, ground_truth)
    assert result.ap == pytest.approx(expected_ap, abs=1e-9)
    assert result.costs == pytest.approx(costs, abs=1e-9)
    assert (result.false_positives, result.false_negatives) == pytest.approx(special, abs=1e-9)
    ignored = analyse(detections, ground_truth, CLASSES).ignored
    assert sum(result.counts.values()) == sum(counts.values()) - ignored.sum()


def by_tidecv(tidecv, detections, ground_truth):
    """AP, cost by kind, (false positives, false negatives) and counts, in [0, 1]."""
    data, guesses = tidecv.Data("truth", 10**6), tidecv.Data("found", 10**6)

    def xywh(box):
        return [box[1], box[0], box[3] - box[1], box[2] - box[0]]

    for number, (image_id, objects) in enumerate(ground_truth.items()):
        data.add_image(number, image_id)
        for box, label, ignore in zip(*objects, strict=True):
            add = data.add_ignore_region if ignore else data.add_ground_truth
            add(number, int(label), xywh(box))
        if image_id in detections:
            for box, score, label in zip(*detections[image_id], strict=True):
                guesses.add_detection(number, int(label), float(score), xywh(box))
    run = tidecv.TIDE().evaluate(data, guesses, mode=tidecv.TIDE.BOX)
    names = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")
    main = {error.short_name: cost / 100 for error, cost in run.fix_main_errors().items()}
    special = {e.short_name: cost / 100 for e, cost in run.fix_special_errors().items()}
    counts = {error.short_name: count for error, count in run.count_errors().items()}
    costs = {kind: main[name] for kind, name in zip(KINDS, names, strict=True)}
    return run.ap / 100, costs, (special["FalsePos"], special["FalseNeg"]), counts
