"""The MultiBox loss (SSD, section 2.2): classification with hard negative mining, and boxes.

The loss is returned as sums. The training step divides them by the number of positives in the
global batch, so the result does not depend on how the batch is split over devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class MultiBoxSums(NamedTuple):
    """Sums over a batch of images; float32 scalars.

    Attributes:
        classification: cross-entropy of the positives and of the mined negatives.
        localization: smooth L1 of the positives' four offsets.
        positives: number of matched anchors.
    """

    classification: jax.Array
    localization: jax.Array
    positives: jax.Array

    @property
    def total(self) -> jax.Array:
        """Returns the sum of both; the loss is this divided by `positives`."""
        return self.classification + self.localization


def multibox_sums(
    class_logits: jax.Array,
    box_offsets: jax.Array,
    target_labels: jax.Array,
    target_offsets: jax.Array,
    negative_ratio: float,
) -> MultiBoxSums:
    """Returns sums of the MultiBox loss over a batch.

    In each image, the floor(`negative_ratio` · positives) negatives of highest cross-entropy count,
    or all negatives if there are fewer. An image without positives contributes nothing. No gradient
    flows through the selection.

    Args:
        class_logits: [B, A, C + 1], class 0 is background.
        box_offsets: [B, A, 4] predicted.
        target_labels: int32 [B, A], 0 = negative.
        target_offsets: [B, A, 4]; read only where the label is not 0.
        negative_ratio: mined negatives per positive.

    Returns:
        The sums; without a positive in the batch, they and their gradients are 0.
    """
    positive = target_labels > 0
    cross_entropy = softmax_cross_entropy(class_logits.astype(jnp.float32), target_labels)
    count = jnp.sum(positive, axis=1, dtype=jnp.int32)
    wanted = (negative_ratio * count).astype(jnp.int32)
    mined = jax.vmap(hard_negative_mask)(jax.lax.stop_gradient(cross_entropy), ~positive, wanted)

    # Masked before smooth L1, so that a NaN in a negative's target cannot reach the gradient
    # (0 · NaN is NaN).
    difference = box_offsets.astype(jnp.float32) - target_offsets
    difference = jnp.where(positive[..., None], difference, 0)
    return MultiBoxSums(
        classification=jnp.sum(jnp.where(positive | mined, cross_entropy, 0)),
        localization=jnp.sum(smooth_l1(difference)),
        positives=jnp.sum(count).astype(jnp.float32),
    )


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes the cross-entropy [...] of logits [..., K] and labels int32 [...] in 0..K-1."""
    # A masked sum, not a gather: the gradient of a gather is a scatter, slow on accelerators.
    own = labels[..., None] == jnp.arange(logits.shape[-1])
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(own, logits, 0), axis=-1)


def smooth_l1(difference: jax.Array) -> jax.Array:
    """Computes smooth L1 by element: d² / 2 where |d| < 1, else |d| - 1/2 (Fast R-CNN, eq. 3)."""
    distance = jnp.abs(difference)
    return jnp.where(distance < 1, 0.5 * difference * difference, distance - 0.5)


def hard_negative_mask(losses: jax.Array, negatives: jax.Array, count: jax.Array) -> jax.Array:
    """Marks the negatives of highest loss in one image.

    Finds the lowest selected loss by bisection on the bits of the float, in 32 counting passes over
    A. Measured on two CPU cores at A = 8744 for 32 images: 4 ms, compared with 9 ms for a sort and
    40 ms for `lax.top_k`.

    Args:
        losses: float32 [A].
        negatives: bool [A], the anchors to choose from.
        count: int32 scalar, the number wanted.

    Returns:
        bool [A] with min(count, number of negatives) marks; among equal losses the lower index
        wins.
    """
    count = jnp.minimum(count, jnp.sum(negatives, dtype=jnp.int32))
    keys = jnp.where(negatives, _ordered_bits(losses), 0)

    def set_bit(i: jax.Array, least: jax.Array) -> jax.Array:
        candidate = least | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        return jnp.where(jnp.sum(keys >= candidate, dtype=jnp.int32) >= count, candidate, least)

    # The largest key that at least `count` keys reach; all ones if count is 0: no key is above.
    least = jax.lax.fori_loop(0, 32, set_bit, jnp.uint32(0))
    above = negatives & (keys > least)
    tied = negatives & (keys == least)
    still_wanted = count - jnp.sum(above, dtype=jnp.int32)
    return above | (tied & (jnp.cumsum(tied, dtype=jnp.int32) <= still_wanted))


def _ordered_bits(values: jax.Array) -> jax.Array:
    """Maps float32 to uint32 in the same order: -0 below +0, a positive NaN last."""
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits & sign, ~bits, bits | sign)
