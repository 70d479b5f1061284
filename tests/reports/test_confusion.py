import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchdet_jax.evaluation.detections import ImageDetections, ImageGroundTruth
from scratchdet_jax.reports.report.precision import confusion_matrix

CLASSES = 3
BOX, NEAR, FAR = (0, 0, 10, 10), (0, 1, 10, 11), (50, 50, 60, 60)


def truth(*rows):
    """Rows (label, box[, ignore])."""
    boxes = np.array([row[1] for row in rows], float).reshape(-1, 4)
    ignore = np.array([len(row) > 2 and row[2] for row in rows], bool)
    return ImageGroundTruth(boxes, np.array([row[0] for row in rows], int), ignore)


def found(*rows):
    """Rows (label, score, box)."""
    boxes = np.array([row[2] for row in rows], float).reshape(-1, 4)
    scores = np.array([row[1] for row in rows], float)
    return ImageDetections(boxes, scores, np.array([row[0] for row in rows], int))


def counts(matrix):
    return {tuple(map(int, at)): int(matrix[tuple(at)]) for at in np.argwhere(matrix)}


def test_every_cell():
    detections = {
        "a": found((1, 0.9, BOX), (3, 0.8, NEAR)),  # the closer one is the pair
        "b": found((3, 0.9, BOX), (2, 0.7, FAR)),
        "c": found((1, 0.4, BOX)),  # below the threshold
    }
    ground_truth = {
        "a": truth((1, BOX)),
        "b": truth((2, BOX)),
        "c": truth((1, BOX)),
        "d": truth((3, BOX)),
    }
    matrix = confusion_matrix(detections, ground_truth, CLASSES)
    assert counts(matrix) == {(1, 1): 1, (0, 3): 1, (2, 3): 1, (0, 2): 1, (1, 0): 1, (3, 0): 1}


def test_ignored_objects_are_neither_found_nor_missed():
    ground_truth = {"a": truth((1, BOX, True), (0, FAR))}
    assert not confusion_matrix({"a": found((2, 0.9, NEAR))}, ground_truth, CLASSES).any()
    other = confusion_matrix({"a": found((2, 0.9, FAR), (0, 0.9, FAR))}, ground_truth, CLASSES)
    assert counts(other) == {(0, 2): 1}


def test_nothing():
    assert not confusion_matrix({}, {}, CLASSES).any()
    assert not confusion_matrix({"a": found()}, {"a": truth()}, CLASSES).any()


def slow_matrix(detections, ground_truth, score, iou):
    """All pairs of an image, the closest first, in plain loops."""

    def overlap(a, b):
        height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        common = max(height, 0) * max(width, 0)
        area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
        return common / (area - common)

    matrix = np.zeros((CLASSES + 1, CLASSES + 1), int)
    for name, objects in ground_truth.items():
        boxes = list(zip(*objects, strict=True))
        real = [(box, label) for box, label, ignore in boxes if not ignore]
        ignored = [box for box, _, ignore in boxes if ignore]
        guesses = [(b, k) for b, s, k in zip(*detections[name], strict=True) if s >= score]
        pairs = [
            (-overlap(guess[0], real_one[0]), i, j)
            for i, guess in enumerate(guesses)
            for j, real_one in enumerate(real)
            if overlap(guess[0], real_one[0]) >= iou
        ]
        used, taken = set(), set()
        for _, i, j in sorted(pairs):
            if i not in used and j not in taken:
                used.add(i)
                taken.add(j)
                matrix[real[j][1], guesses[i][1]] += 1
        for j, (_, label) in enumerate(real):
            matrix[label, 0] += j not in taken
        for i, (box, label) in enumerate(guesses):
            if i not in used and all(overlap(box, other) < iou for other in ignored):
                matrix[0, label] += 1
    return matrix


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6))
def test_equals_plain_loops(seed):
    rng = np.random.default_rng(seed)

    def boxes(count):
        corner = rng.integers(0, 4, (count, 2)) * 5.0
        return np.concatenate([corner, corner + rng.integers(1, 4, (count, 2)) * 5.0], axis=-1)

    ground_truth, detections = {}, {}
    for name in "abc":
        n, k = rng.integers(0, 6, 2)
        labels = rng.integers(1, CLASSES + 1, n)
        ground_truth[name] = ImageGroundTruth(boxes(n), labels, rng.random(n) < 0.2)
        labels = rng.integers(1, CLASSES + 1, k)
        detections[name] = ImageDetections(boxes(k), rng.random(k), labels)
    matrix = confusion_matrix(detections, ground_truth, CLASSES, score=0.3, iou=0.4)
    np.testing.assert_array_equal(matrix, slow_matrix(detections, ground_truth, 0.3, 0.4))
