import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchdet_jax.ops import boxes as box_ops
from scratchdet_jax.ops.anchors import SPECIFICATIONS, make_anchors
from scratchdet_jax.ops.matching import match
from tests.ops import oracles

GRID = 8  # corners on a grid of 1/8: areas are exact, so equal overlaps are equal to the bit
ANCHORS, BOXES = 30, 7


def oracle_match(anchors, boxes, labels, threshold):
    """SSD's MatchBBox with its loops."""
    pool = [g for g in range(len(boxes)) if labels[g] > 0]
    real = list(pool)
    overlaps = {
        (a, g): oracles.iou(anchors[a], boxes[g]) for a in range(len(anchors)) for g in pool
    }
    overlaps = {pair: overlap for pair, overlap in overlaps.items() if overlap > 1e-6}
    matched = [-1] * len(anchors)
    while pool:
        best, best_pair = -1, None
        for a in range(len(anchors)):
            for g in pool:
                if matched[a] == -1 and overlaps.get((a, g), -1) > best:
                    best, best_pair = overlaps[a, g], (a, g)
        if best_pair is None:
            break
        matched[best_pair[0]] = best_pair[1]
        pool.remove(best_pair[1])
    for a in [a for a in range(len(anchors)) if matched[a] == -1]:
        best = -1
        for g in real:
            overlap = overlaps.get((a, g), -1)
            if overlap >= threshold and overlap > best:
                best, matched[a] = overlap, g
    return matched


@st.composite
def grid_boxes(draw, count):
    """Crowded boxes on the grid, some empty or swapped."""
    corners = st.lists(st.integers(0, GRID), min_size=4, max_size=4)
    few = draw(st.lists(corners, min_size=1, max_size=count))
    # Frequent repeats give frequent ties.
    chosen = draw(st.lists(st.sampled_from(few), min_size=count, max_size=count))
    boxes = np.asarray(chosen, np.float32) / GRID
    if draw(st.booleans()):
        boxes = np.concatenate(
            [np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], -1
        )
    return boxes


jitted = jax.jit(match)


@settings(deadline=None, max_examples=150)
@given(
    anchors=grid_boxes(ANCHORS),
    boxes=grid_boxes(BOXES),
    labels=st.lists(st.integers(0, 3), min_size=BOXES, max_size=BOXES),
    threshold=st.sampled_from([0.5, 0.25]),
)
def test_matches_the_loops_of_ssd(anchors, boxes, labels, threshold):
    labels = np.asarray(labels, np.int32)
    targets = jitted(anchors, boxes, labels, threshold)
    expected = np.asarray(oracle_match(anchors, boxes, labels, threshold))
    np.testing.assert_array_equal(targets.matched, expected)
    np.testing.assert_array_equal(targets.labels, np.where(expected >= 0, labels[expected], 0))
    offsets = box_ops.encode(jnp.asarray(boxes)[expected], anchors)
    np.testing.assert_allclose(
        targets.offsets, np.where(expected[:, None] >= 0, offsets, 0), rtol=1e-5, atol=1e-5
    )


@pytest.fixture(scope="module")
def ssd_anchors():
    return make_anchors(SPECIFICATIONS["voc300"], (38, 19, 10, 5, 3, 1))


def test_a_small_box_takes_its_best_anchor_below_the_threshold(ssd_anchors):
    boxes = jnp.asarray([[0.5, 0.5, 0.51, 0.51], [0, 0, 0, 0]])
    targets = jitted(ssd_anchors, boxes, jnp.asarray([3, 0]), 0.5)
    best = np.argmax(box_ops.iou(boxes[:1], ssd_anchors)[0])
    assert np.flatnonzero(targets.matched >= 0).tolist() == [best]
    assert targets.labels[best] == 3


def test_crowds_get_an_anchor_each(ssd_anchors):
    boxes = jnp.tile(jnp.asarray([0.4, 0.4, 0.6, 0.6]), (50, 1))
    targets = jitted(ssd_anchors, boxes, jnp.ones(50, jnp.int32), 0.5)
    # The bipartite stage serves all fifty equal boxes; the first one then gets the other anchors.
    assert set(np.asarray(targets.matched)) == {-1, *range(50)}
    assert np.all(np.bincount(np.asarray(targets.matched) + 1)[2:] == 1)


def test_images_without_boxes_and_boxes_without_overlap_have_no_positives(ssd_anchors):
    boxes = np.zeros((4, 4), np.float32)
    boxes[1] = [3, 3, 4, 4]  # touches no anchor
    boxes[2] = [0.5, 0.2, 0.5, 0.9]  # no area
    boxes[3] = [np.nan] * 4
    for labels in ([0, 0, 0, 0], [0, 1, 1, 1]):
        targets = jitted(ssd_anchors, boxes, np.asarray(labels, np.int32), 0.5)
        assert np.all(targets.matched == -1)
        assert not np.any(targets.labels)
        assert not np.any(targets.offsets)


def test_padding_changes_nothing_and_vmap_equals_one_by_one(ssd_anchors):
    rng = np.random.default_rng(0)
    centre, sides = rng.uniform(0, 1, (3, 12, 2)), rng.uniform(0.02, 0.6, (3, 12, 2))
    boxes = np.concatenate([centre - sides / 2, centre + sides / 2], -1).astype(np.float32)
    labels = (rng.integers(1, 4, (3, 12)) * (np.arange(12) < [[0], [5], [12]])).astype(np.int32)
    batch = jax.jit(jax.vmap(match, in_axes=(None, 0, 0, None)))(ssd_anchors, boxes, labels, 0.5)
    for i, real in enumerate((0, 5, 12)):
        garbage = boxes[i].copy()
        garbage[real:] = boxes[i, 0]
        alone = jitted(ssd_anchors, garbage, labels[i], 0.5)
        for field in ("labels", "matched"):
            np.testing.assert_array_equal(getattr(batch, field)[i], getattr(alone, field))
        np.testing.assert_allclose(batch.offsets[i], alone.offsets, rtol=1e-5, atol=1e-5)
