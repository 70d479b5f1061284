import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchdet_jax.ops.losses import hard_negative_mask, multibox_sums, smooth_l1
from scratchdet_jax.ops.matching import match

COUNT = 24
RATIO = 3.0


def oracle_mask(losses, negatives, count):
    """The chosen negatives: a stable sort by loss, best first."""
    chosen = sorted(np.flatnonzero(negatives), key=lambda i: -losses[i])[:count]
    return np.isin(np.arange(len(losses)), chosen)


def oracle_sums(logits, offsets, labels, targets):
    """The MultiBox sums, anchor by anchor, in float64."""
    logits, classification, localization = logits.astype(np.float64), 0.0, 0.0
    for b in range(len(labels)):
        losses = [
            np.log(np.exp(row - row.max()).sum()) + row.max() - row[label]
            for row, label in zip(logits[b], labels[b], strict=True)
        ]
        positives = np.flatnonzero(labels[b])
        mask = oracle_mask(losses, labels[b] == 0, int(RATIO * len(positives)))
        classification += sum(losses[a] for a in [*positives, *np.flatnonzero(mask)])
        for a in positives:
            for d in np.abs(offsets[b, a].astype(np.float64) - targets[b, a]):
                localization += 0.5 * d * d if d < 1 else d - 0.5
    return classification, localization, np.count_nonzero(labels)


jitted_mask = jax.jit(hard_negative_mask)
jitted_sums = jax.jit(functools.partial(multibox_sums, negative_ratio=RATIO))


def floats():
    return st.one_of(
        st.sampled_from([0.0, 0.5, 1.0, -1.0, 1e-40, 3e38, float("inf")]),
        st.floats(-10, 1e6, width=32),
    )


@settings(deadline=None, max_examples=300)
@given(
    losses=st.lists(floats(), min_size=COUNT, max_size=COUNT),
    negatives=st.lists(st.booleans(), min_size=COUNT, max_size=COUNT),
    count=st.integers(0, COUNT + 5),
)
def test_hard_negatives_are_exact_with_ties(losses, negatives, count):
    # -0 + 0 = 0: the oracle does not distinguish the two zeros.
    losses, negatives = np.asarray(losses, np.float32) + np.float32(0), np.asarray(negatives)
    mask = np.asarray(jitted_mask(losses, negatives, count))
    np.testing.assert_array_equal(mask, oracle_mask(losses, negatives, count))
    assert mask.sum() == min(count, negatives.sum())


def random_batch(rng, batch=3, anchors=40, classes=5, positive=0.1):
    logits = rng.normal(0, 2, (batch, anchors, classes + 1)).astype(np.float32)
    offsets = rng.normal(0, 1, (batch, anchors, 4)).astype(np.float32)
    labels = rng.integers(1, classes + 1, (batch, anchors))
    labels = np.where(rng.random((batch, anchors)) < positive, labels, 0).astype(np.int32)
    targets = rng.normal(0, 1, (batch, anchors, 4)).astype(np.float32)
    return logits, offsets, labels, targets


@pytest.mark.parametrize("positive", [0.0, 0.02, 0.1, 0.6, 1.0])
def test_sums_match_the_oracle(positive):
    batch = random_batch(np.random.default_rng(int(100 * positive)), positive=positive)
    np.testing.assert_allclose(jitted_sums(*batch), oracle_sums(*batch), rtol=1e-5)


def test_sums_add_up_over_the_images():
    batch = random_batch(np.random.default_rng(5))
    parts = [jitted_sums(*(x[i : i + 1] for x in batch)) for i in range(3)]
    np.testing.assert_allclose(jitted_sums(*batch), np.sum(parts, axis=0), rtol=1e-5)


def test_no_positives_give_zero_sums_and_zero_gradients():
    logits, offsets, labels, targets = random_batch(np.random.default_rng(6), positive=0)
    assert jitted_sums(logits, offsets, labels, targets) == (0, 0, 0)
    for sums in multibox_gradient(logits, offsets, labels, targets):
        assert not np.any(sums)


def multibox_gradient(logits, offsets, labels, targets):
    def loss(logits, offsets):
        return multibox_sums(logits, offsets, labels, targets, RATIO).total

    return jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.asarray(logits), jnp.asarray(offsets))


def test_gradient_is_that_of_the_chosen_anchors():
    logits, offsets, labels, targets = random_batch(np.random.default_rng(7))
    got_logits, got_offsets = multibox_gradient(logits, offsets, labels, targets)
    probabilities = np.asarray(jax.nn.softmax(jnp.asarray(logits)))
    own = np.eye(logits.shape[-1])[labels]
    losses = -np.log((probabilities * own).sum(-1))
    used = np.stack(
        [
            (labels[b] > 0)
            | oracle_mask(losses[b], labels[b] == 0, int(RATIO * np.count_nonzero(labels[b])))
            for b in range(len(labels))
        ]
    )
    np.testing.assert_allclose(
        got_logits, np.where(used[..., None], probabilities - own, 0), atol=1e-5
    )
    expected = np.where(labels[..., None] > 0, np.clip(offsets - targets, -1, 1), 0)
    np.testing.assert_allclose(got_offsets, expected, atol=1e-6)


def test_targets_of_negatives_never_reach_the_gradient():
    logits, offsets, labels, targets = random_batch(np.random.default_rng(8))
    targets[labels == 0] = np.nan
    for gradient in multibox_gradient(logits, offsets, labels, targets):
        assert np.all(np.isfinite(gradient))


def test_gradients_are_finite_for_degenerate_ground_truth():
    """Faulty annotations: empty, swapped, outside the image, next to padding."""
    anchors = np.asarray(
        [[y, x, y + 0.3, x + 0.3] for y in (0, 0.3, 0.6) for x in (0, 0.3, 0.6)], np.float32
    )
    boxes = np.asarray(
        [
            [[0, 0, 0, 0], [0.9, 0.9, 0.1, 0.1], [0.2, 0.4, 0.2, 0.6]],
            [[-1, -1, 2, 2], [0.31, 0.31, 0.3100001, 0.3100001], [5, 5, 6, 6]],
            [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        ],
        np.float32,
    )
    labels = np.asarray([[1, 2, 3], [1, 2, 3], [0, 0, 0]], np.int32)
    targets = jax.jit(jax.vmap(match, in_axes=(None, 0, 0, None)))(anchors, boxes, labels, 0.5)
    assert np.all(np.isfinite(targets.offsets))
    rng = np.random.default_rng(9)
    logits = 50 * rng.normal(size=(3, 9, 4)).astype(np.float32)
    offsets = 1e4 * rng.normal(size=(3, 9, 4)).astype(np.float32)
    assert np.all(np.isfinite(jitted_sums(logits, offsets, targets.labels, targets.offsets)))
    for gradient in multibox_gradient(logits, offsets, targets.labels, targets.offsets):
        assert np.all(np.isfinite(gradient))


def test_smooth_l1_of_known_values():
    values = jnp.asarray([0, 0.5, -0.5, 1, -3])
    np.testing.assert_allclose(smooth_l1(values), [0, 0.125, 0.125, 0.5, 2.5])
