"""The constant box against slow versions of its choice and of its score."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchdet_jax.evaluation import coco, voc
from scratchdet_jax.evaluation.detections import (
    FlatGroundTruth,
    ImageDetections,
    ImageGroundTruth,
    flatten_ground_truth,
    overlaps,
)
from scratchdet_jax.reports import baseline
from scratchdet_jax.reports.baseline import choose_boxes, constant_box
from tests.ops.oracles import iou

NAMES = ("cat", "dog", "bird")


def random_truth(rng, images, most=5, classes=3):
    """Images of different sizes; boxes are normalised to tenths, so that many are equal."""
    truth, sizes = {}, {}
    for i in range(images):
        count = rng.integers(0, most + 1)
        low = rng.integers(0, 6, (count, 2))
        boxes = np.concatenate([low, low + rng.integers(1, 5, (count, 2))], axis=1) / 10
        size = rng.integers(50, 300, 2)
        truth[f"i{i}"] = ImageGroundTruth(
            boxes * np.tile(size, 2), rng.integers(1, classes + 1, count), rng.random(count) < 0.2
        )
        sizes[f"i{i}"] = tuple(size.tolist())
    return truth, sizes


def normalised(truth, sizes, classes=3):
    flat = flatten_ground_truth(truth, classes)
    scales = np.array([sizes[name] * 2 for name in truth], float).reshape(-1, 4)
    return flat._replace(boxes_pixels=flat.boxes_pixels / scales[flat.image])


def oracle_choice(truth, label):
    """(images met, sum of the best IoU in each image) of every candidate, one by one."""
    rows = np.flatnonzero((truth.labels == label) & ~truth.ignore)
    figures = []
    for candidate in rows:
        best = {}
        for row in rows:
            overlap = iou(truth.boxes_pixels[candidate], truth.boxes_pixels[row])
            image = truth.image[row]
            best[image] = max(best.get(image, 0.0), overlap)
        met = sum(value >= 0.5 for value in best.values())
        figures.append((met, sum(best.values())))
    return rows, figures


@given(seed=st.integers(0, 10**6), images=st.integers(0, 8))
@settings(max_examples=60, deadline=None)
def test_the_choice_matches_the_oracle(seed, images):
    truth = normalised(*random_truth(np.random.default_rng(seed), images))
    chosen = choose_boxes(truth, 3)
    for label in (1, 2, 3):
        rows, figures = oracle_choice(truth, label)
        if not len(rows):
            assert np.isnan(chosen[label - 1]).all()
            continue
        own = [
            figures[i]
            for i, row in enumerate(rows)
            if np.array_equal(truth.boxes_pixels[row], chosen[label - 1])
        ]
        assert own, "the box is not one of the candidates"
        met, total = own[0]
        most = max(count for count, _ in figures)
        assert met == most
        assert total == pytest.approx(max(t for count, t in figures if count == most))


def test_the_choice_in_parts_is_the_same(monkeypatch):
    truth = normalised(*random_truth(np.random.default_rng(1), 40))
    whole = choose_boxes(truth, 3)
    monkeypatch.setattr(baseline, "_OVERLAPS_AT_A_TIME", 100)
    np.testing.assert_array_equal(choose_boxes(truth, 3), whole)


def test_candidates_of_a_large_class_are_drawn_and_every_run_draws_the_same():
    rng = np.random.default_rng(2)
    low = rng.uniform(0, 0.2, (2000, 2))
    boxes = np.concatenate([low, rng.uniform(0.8, 1, (2000, 2))], axis=1)
    truth = FlatGroundTruth(np.arange(2000), boxes, np.ones(2000, int), np.zeros(2000, bool))
    chosen = choose_boxes(truth, 1)
    np.testing.assert_array_equal(choose_boxes(truth, 1), chosen)
    mean = overlaps(chosen, boxes).mean()
    best = max(overlaps(boxes[i : i + 1], boxes).mean() for i in range(2000))
    assert (boxes == chosen).all(axis=1).any()
    assert best - 0.02 < mean <= best


def slow_score(truth, sizes, boxes, metric):
    """Every box on every image, in the shuffled order, without spare images."""
    ids = [list(truth)[i] for i in np.random.default_rng(0).permutation(len(truth))]
    labels = [label for label, name in enumerate(NAMES, 1) if boxes[name] is not None]
    found = {
        name: ImageDetections(
            np.array([boxes[NAMES[label - 1]] for label in labels]).reshape(-1, 4)
            * np.tile(sizes[name], 2),
            np.full(len(labels), 1 - rank / len(ids)),
            np.array(labels, int),
        )
        for rank, name in enumerate(ids)
    }
    if metric == "coco":
        whole = coco.evaluate(found, truth, NAMES)
        return whole.metrics["AP"], whole.per_class
    result = voc.evaluate(found, truth, NAMES, metric=metric.removeprefix("voc_"))
    return result.mean, result.per_class


@pytest.mark.parametrize("metric", ["voc_11point", "voc_area", "coco"])
@pytest.mark.parametrize(("images", "together"), [(0, 100), (1, 100), (30, 4), (250, 100)])
def test_the_score_is_that_of_the_evaluator(monkeypatch, metric, images, together):
    monkeypatch.setattr(baseline, "_TOGETHER", together)
    truth, sizes = random_truth(np.random.default_rng(images), images)
    # Chosen boxes are rounded to four decimals in the result; tenths stay as they are.
    result = constant_box(truth, sizes, NAMES, metric)
    mean, per_class = slow_score(truth, sizes, result.boxes, metric)
    assert result.mean == pytest.approx(mean, nan_ok=True, abs=1e-12)
    assert result.per_class == pytest.approx(per_class, abs=1e-12)
    assert result.images == images
    if images > 1:
        assert 0 < result.mean < 1


@pytest.mark.parametrize("metric", ["voc_11point", "voc_area", "coco"])
def test_the_same_large_box_on_every_picture_scores_nearly_one(metric):
    rng = np.random.default_rng(3)
    truth, sizes = {}, {}
    for i in range(200):
        size = rng.integers(100, 500, 2)
        box = np.array([[0.1, 0.1, 0.9, 0.9]]) + rng.uniform(-0.005, 0.005, (1, 4))
        truth[str(i)] = ImageGroundTruth(box * np.tile(size, 2), np.array([2]), np.array([False]))
        sizes[str(i)] = tuple(size.tolist())
    result = constant_box(truth, sizes, NAMES, metric)
    assert result.mean > 0.98
    assert result.per_class["cat"] is None and result.boxes["cat"] is None
    assert result.boxes["dog"] == pytest.approx([0.1, 0.1, 0.9, 0.9], abs=0.01)


@pytest.mark.parametrize("metric", ["voc_11point", "voc_area", "coco"])
def test_the_order_of_the_images_is_no_knowledge(metric):
    """Cats first, then dogs, in the same place: each guess is right in half of the images."""
    box = np.array([[10.0, 10.0, 90.0, 90.0]])
    truth = {
        str(i): ImageGroundTruth(box, np.array([1 if i < 300 else 2]), np.array([False]))
        for i in range(600)
    }
    result = constant_box(truth, dict.fromkeys(truth, (100, 100)), NAMES[:2], metric)
    assert result.mean == pytest.approx(0.5, abs=0.06)


def test_images_of_a_large_split_are_drawn(monkeypatch):
    monkeypatch.setattr(baseline, "_GUESSES", 60)
    truth, sizes = random_truth(np.random.default_rng(4), 50)
    result = constant_box(truth, sizes, NAMES, "voc_area")
    assert result.images == 20
    assert result == constant_box(truth, sizes, NAMES, "voc_area")
    assert "on each of 20 images drawn at random: mAP" in result.line("area", 50)
    assert "drawn" not in result.line("area", 20)


def test_nothing_to_score():
    none = ImageGroundTruth(np.array([[1.0, 1, 9, 9]]), np.array([1]), np.array([True]))
    result = constant_box({"a": none}, {"a": (10, 10)}, NAMES[:1], "voc_area")
    assert np.isnan(result.mean) and result.line("area", 1) is None
    assert result.record() == {
        "mAP": None,
        "AP": {"cat": None},
        "boxes": {"cat": None},
        "images": 1,
    }
