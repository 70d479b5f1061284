import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scratchdet_jax.ops import boxes as box_ops
from tests.ops import oracles


def random_boxes(rng, count):
    centre, sides = rng.uniform(0, 1, (count, 2)), rng.uniform(0.01, 0.8, (count, 2))
    return np.concatenate([centre - sides / 2, centre + sides / 2], -1).astype(np.float32)


def test_centre_form_of_a_known_box_and_back():
    box = jnp.asarray([[0.1, 0.2, 0.5, 0.8]])
    np.testing.assert_allclose(box_ops.to_cyxhw(box), [[0.3, 0.5, 0.4, 0.6]], rtol=1e-6)
    np.testing.assert_allclose(box_ops.from_cyxhw(box_ops.to_cyxhw(box)), box, rtol=1e-6)


def test_area_is_zero_for_empty_and_swapped_boxes():
    boxes = jnp.asarray([[0, 0, 0.5, 0.5], [0, 0, 0, 1], [0.5, 0.5, 0.1, 0.1], [0.5, 0, 0.1, 1]])
    np.testing.assert_array_equal(box_ops.area(boxes), [0.25, 0, 0, 0])


def test_iou_of_known_pairs():
    a = jnp.asarray([[0, 0, 0.5, 0.5], [0, 0, 1, 1]])
    b = jnp.asarray([[0, 0, 0.5, 0.5], [0, 0.25, 0.5, 0.75], [0.5, 0.5, 1, 1]])
    np.testing.assert_allclose(box_ops.iou(a, b), [[1, 1 / 3, 0], [0.25, 0.25, 0.25]], rtol=1e-6)


def test_iou_matches_the_oracle():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 23), random_boxes(rng, 17)
    expected = [[oracles.iou(x, y) for y in b.astype(float)] for x in a.astype(float)]
    np.testing.assert_allclose(box_ops.iou(a, b), expected, rtol=1e-4, atol=1e-6)


def test_iou_of_degenerate_boxes_is_zero():
    bad = [
        [0.5, 0.5, 0.5, 0.5],
        [0.8, 0.8, 0.2, 0.2],
        [0, 0, 0, 0],
        [np.nan] * 4,
        [0, 0, np.inf, 1],
    ]
    bad, good = jnp.asarray(bad, jnp.float32), jnp.asarray([[0, 0, 1, 1.0]])
    for a, b in itertools.product((bad, good), repeat=2):
        if a is b is good:
            continue
        assert not np.any(box_ops.iou(a, b))


def test_encode_of_a_known_pair():
    # Box: centre (0.5, 0.6), 0.4 × 0.2. Anchor: centre (0.4, 0.4), 0.2 × 0.4.
    box, anchor = jnp.asarray([0.3, 0.5, 0.7, 0.7]), jnp.asarray([0.3, 0.2, 0.5, 0.6])
    expected = [0.1 / 0.2 / 0.1, 0.2 / 0.4 / 0.1, np.log(2) / 0.2, np.log(0.5) / 0.2]
    np.testing.assert_allclose(box_ops.encode(box, anchor), expected, rtol=1e-4)


def test_decode_inverts_encode():
    rng = np.random.default_rng(1)
    boxes, anchors = random_boxes(rng, 64), random_boxes(rng, 64)
    back = box_ops.decode(box_ops.encode(boxes, anchors), anchors)
    np.testing.assert_allclose(back, boxes, atol=2e-6)


@pytest.mark.parametrize("box", [[0, 0, 0, 0], [0.9, 0.9, 0.1, 0.1], [0.2, 0.3, 0.2, 0.9]])
@pytest.mark.parametrize("anchor", [[0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.5, 0.5]])
def test_encode_and_its_gradient_are_finite_for_degenerate_boxes(box, anchor):
    box, anchor = jnp.asarray(box, jnp.float32), jnp.asarray(anchor, jnp.float32)
    assert np.all(np.isfinite(box_ops.encode(box, anchor)))
    gradient = jax.grad(lambda b: box_ops.encode(b, anchor).sum())(box)
    assert np.all(np.isfinite(gradient))


def test_decode_is_finite_for_huge_offsets():
    anchor = jnp.asarray([0.1, 0.1, 0.4, 0.4])
    for value in (-1e6, 1e6):
        boxes = box_ops.decode(jnp.full(4, value), anchor)
        assert np.all(np.isfinite(boxes))
