import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchdet_jax.ops.nms import nms_mask, select_detections
from tests.ops import oracles

GRID = 16  # corners on a grid of 1/16: areas are exact in float32, so equal overlaps are equal


def oracle_nms(boxes, valid, threshold):
    """Indices kept, greedily."""
    kept = []
    for i in range(len(boxes)):
        if valid[i] and all(oracles.iou(boxes[k], boxes[i]) <= threshold for k in kept):
            kept.append(i)
    return kept


def oracle_select(boxes, probabilities, score_threshold, iou_threshold, candidates, slots):
    """(boxes, scores, labels) of the detections, with loops over classes and boxes."""
    boxes, found = np.clip(boxes, 0, 1), []
    for label in range(1, probabilities.shape[1]):
        scores = probabilities[:, label]
        order = [
            a
            for a in np.argsort(-scores, kind="stable")
            if scores[a] >= score_threshold
            and boxes[a, 2] > boxes[a, 0]
            and boxes[a, 3] > boxes[a, 1]
        ][:candidates]
        kept = oracle_nms(boxes[order], [True] * len(order), iou_threshold)
        found += [(scores[order[k]], label, boxes[order[k]]) for k in kept]
    found = sorted(found, key=lambda detection: -detection[0])[:slots]
    found += [(0, 0, np.zeros(4))] * (slots - len(found))
    scores, labels, kept_boxes = zip(*found, strict=True)
    return np.stack(kept_boxes), np.asarray(scores), np.asarray(labels)


jitted_mask = jax.jit(nms_mask)


@st.composite
def crowds(draw, count):
    """Crowded grid boxes with near neighbours and duplicates."""
    seed = draw(st.integers(0, 2**32 - 1))
    spread, side = draw(st.sampled_from([1, 3, 8])), draw(st.sampled_from([2, 4, 8]))
    rng = np.random.default_rng(seed)
    low = rng.integers(0, spread + 1, (count, 2))
    high = low + rng.integers(1, side + 1, (count, 2))
    return np.concatenate([low, high], -1).astype(np.float32) / GRID


@pytest.mark.parametrize("count", [7, 32, 70])  # less than a word, a word, several
def test_mask_is_greedy_at_any_threshold(count):
    @settings(deadline=None, max_examples=60)
    @given(
        boxes=crowds(count),
        valid=st.lists(st.booleans(), min_size=count, max_size=count),
        threshold=st.sampled_from([0.0, 0.3, 0.45, 0.5, 0.6, 0.9]),
    )
    def check(boxes, valid, threshold):
        kept = np.flatnonzero(jitted_mask(boxes, np.asarray(valid), threshold))
        assert kept.tolist() == oracle_nms(boxes, valid, np.float32(threshold))

    check()


def test_long_chains_of_suppression_are_resolved():
    """Each box suppresses only the next, so every second one stays; takes one round per box."""
    count = 100
    start = np.arange(count) / 256
    boxes = np.stack([0 * start, start, 0 * start + 1, start + 2 / 256], -1).astype(np.float32)
    keep = jitted_mask(boxes, np.ones(count, bool), 0.3)  # neighbours overlap by 1/3
    np.testing.assert_array_equal(keep, np.arange(count) % 2 == 0)


def test_overlap_equal_to_the_threshold_does_not_suppress():
    boxes = np.asarray([[0, 0, 1, 1], [0, 0, 0.5, 1], [0, 0, 0.5625, 1]], np.float32)
    keep = jitted_mask(boxes, np.ones(3, bool), 0.5)
    np.testing.assert_array_equal(keep, [True, True, False])


ANCHORS, CLASSES = 60, 4
OPTIONS = {
    "score_threshold": 0.0625,
    "iou_threshold": 0.45,
    "candidates_per_class": 20,
    "max_detections": 30,
}
select = jax.jit(functools.partial(select_detections, **OPTIONS))


def scores_with_ties(rng, anchors=ANCHORS):
    return (rng.integers(0, 9, (anchors, CLASSES + 1)) / 32).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(boxes=crowds(ANCHORS), seed=st.integers(0, 1000))
def test_selection_matches_the_loops(boxes, seed):
    rng = np.random.default_rng(seed)
    boxes = boxes * 3 - 0.5  # some partly, some fully beyond the border
    boxes[rng.random(ANCHORS) < 0.1] = [0.5, 0.5, 0.25, 0.75]  # swapped
    probabilities = scores_with_ties(rng)
    found = select(boxes, probabilities)
    expected = oracle_select(boxes, probabilities, *OPTIONS.values())
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-7)


def test_background_is_never_selected_and_classes_do_not_suppress_each_other():
    boxes = np.tile(np.asarray([0.25, 0.25, 0.75, 0.75], np.float32), (ANCHORS, 1))
    probabilities = np.zeros((ANCHORS, CLASSES + 1), np.float32)
    probabilities[0] = [0.5, 0.25, 0, 0.125, 0]
    found = select(boxes, probabilities)
    assert found.labels[:3].tolist() == [1, 3, 0]
    np.testing.assert_array_equal(found.scores[:3], [0.25, 0.125, 0])
    assert not np.any(found.boxes[2:])


def test_nan_and_low_scores_and_bad_boxes_are_never_selected():
    boxes = np.tile(np.asarray([0, 0, 1, 1], np.float32), (ANCHORS, 1))
    probabilities = np.full((ANCHORS, CLASSES + 1), np.nan, np.float32)
    probabilities[:5] = 0.9
    boxes[0] = np.nan
    boxes[1] = [1.5, 0, 2, 1]  # clipped to nothing
    boxes[2] = [0.5, 0.5, 0.5, 0.6]
    boxes[3] = [0.9, 0.9, 0.1, 0.1]
    probabilities[4] = 0.06
    found = select(boxes, probabilities)
    assert not np.any(found.labels)
    assert not np.any(found.scores)
    assert not np.any(found.boxes)


def test_negative_coordinates_are_clipped_not_dropped():
    boxes = np.tile(np.asarray([-0.5, 0.25, 0.5, 1.5], np.float32), (ANCHORS, 1))
    probabilities = np.full((ANCHORS, CLASSES + 1), 0.5, np.float32)
    found = select(boxes, probabilities)
    np.testing.assert_array_equal(found.boxes[0], [0, 0.25, 0.5, 1])


def test_fewer_anchors_than_slots_leaves_empty_slots():
    found = select(
        jnp.asarray([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]]), jnp.asarray([[0.2, 0.8], [0.5, 0.5]])
    )
    assert found.boxes.shape == (OPTIONS["max_detections"], 4)
    np.testing.assert_array_equal(found.labels[:3], [1, 1, 0])
    np.testing.assert_allclose(found.scores[:3], [0.8, 0.5, 0])


def test_vmap_over_a_batch_equals_one_by_one():
    rng = np.random.default_rng(3)
    low = rng.uniform(0, 0.6, (3, ANCHORS, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.05, 0.5, low.shape)], -1).astype(np.float32)
    probabilities = np.stack([scores_with_ties(rng) for _ in range(3)])
    probabilities[1] = 0  # an image without candidates among others
    batch = jax.jit(jax.vmap(functools.partial(select_detections, **OPTIONS)))(boxes, probabilities)
    assert not np.any(batch.labels[1])
    for i in range(3):
        alone = select(boxes[i], probabilities[i])
        for got, want in zip(batch, alone, strict=True):
            np.testing.assert_allclose(got[i], want, atol=1e-7)
