"""Non-maximum suppression: exact, greedy, per class, in fixed shapes."""

from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from scratchdet_jax.ops import boxes as box_ops

_WORD = 32
"""Bits in a word of the packed suppression matrix."""


Array = TypeVar("Array", jax.Array, np.ndarray)


class Detections(NamedTuple, Generic[Array]):
    """The detections of one image, best first, in K slots: of JAX, or of NumPy on the host.

    Attributes:
        boxes: float32 [K, 4], clipped to the image; 0 in empty slots.
        scores: float32 [K], descending; 0 in empty slots.
        labels: int32 [K], 1..C; 0 marks an empty slot. Empty slots come last.
    """

    boxes: Array
    scores: Array
    labels: Array


def select_detections(
    boxes: jax.Array,
    class_probabilities: jax.Array,
    *,
    score_threshold: float,
    iou_threshold: float,
    candidates_per_class: int,
    max_detections: int,
) -> Detections[jax.Array]:
    """Selects the detections of one image as SSD does; vmap it over a batch.

    Boxes are clipped to the image, and boxes without area are dropped. Suppression is then applied
    to the best candidates of each class, and the best detections of all classes are kept. A
    candidate with a NaN in its score or box is never selected. Equal scores keep the order of the
    classes, then of the anchors.

    Memory in addition to the inputs: C · A scores, and C · n² / 8 bytes for n candidates per class
    (1.7 MB per image at C = 80, n = 400), so a full batch can be mapped at once.

    Args:
        boxes: [A, 4], decoded.
        class_probabilities: [A, C + 1], class 0 is background.
        score_threshold: least score of a candidate.
        iou_threshold: a candidate whose IoU with a better one exceeds this is suppressed.
        candidates_per_class: largest number of candidates of a class in the suppression.
        max_detections: K.

    Returns:
        K slots of detections.
    """
    boxes = jnp.clip(jnp.asarray(boxes, jnp.float32), 0, 1)
    scores = jnp.asarray(class_probabilities, jnp.float32)[:, 1:].T  # [C, A]
    fit = (box_ops.area(boxes) > 0) & (scores >= score_threshold)  # a NaN compares false
    candidates = min(candidates_per_class, boxes.shape[0])
    scores, index = jax.lax.top_k(jnp.where(fit, scores, -jnp.inf), candidates)  # [C, n]
    keep = jax.vmap(nms_mask, in_axes=(0, 0, None))(boxes[index], scores > -jnp.inf, iou_threshold)

    scores = jnp.where(keep, scores, -jnp.inf).ravel()
    slots = min(max_detections, scores.shape[0])
    scores, order = jax.lax.top_k(scores, slots)
    filled = scores > -jnp.inf
    spare = max_detections - slots
    return Detections(
        boxes=jnp.pad(
            jnp.where(filled[:, None], boxes[index.ravel()[order]], 0), ((0, spare), (0, 0))
        ),
        scores=jnp.pad(jnp.where(filled, scores, 0), (0, spare)),
        labels=jnp.pad(jnp.where(filled, order // candidates + 1, 0).astype(jnp.int32), (0, spare)),
    )


def nms_mask(boxes: jax.Array, valid: jax.Array, iou_threshold: float) -> jax.Array:
    """Suppresses non-maxima greedily, exactly at any threshold.

    A box is kept if its IoU with every kept box before it is at most the threshold. The rule is
    applied to all boxes at once until nothing changes. Each box depends only on earlier ones, so
    the first t boxes are correct after t rounds and the fixed point is the greedy result. The
    number of rounds is the length of the longest chain of suppressions: at most ten, as measured in
    random crowds of 400 boxes.

    Args:
        boxes: [N, 4] sorted by score, best first.
        valid: bool [N]; other boxes are not kept and suppress nothing.
        iou_threshold: a box suppresses later boxes whose IoU with it exceeds this.

    Returns:
        bool [N], True for the boxes kept.
    """
    spare = -boxes.shape[0] % _WORD
    before = jnp.arange(boxes.shape[0])[:, None] > jnp.arange(boxes.shape[0] + spare)
    padded = jnp.pad(boxes, ((0, spare), (0, 0)))
    # Packed bits: each round reads a 32nd of the elements, and the matrix is small enough to map
    # over classes and images at once.
    suppressors = _pack(before & (box_ops.iou(boxes, padded) > iou_threshold))  # [N, words]

    def suppress(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        keep, _ = state
        kept = _pack(jnp.pad(keep, (0, spare)))
        new = valid & ~jnp.any((suppressors & kept) != 0, axis=1)
        return new, jnp.any(new != keep)

    return jax.lax.while_loop(lambda state: state[1], suppress, (valid, jnp.any(valid)))[0]


def _pack(bits: jax.Array) -> jax.Array:
    """Packs bool [..., 32 · words] into int32 [..., words], the lowest bit first.

    Signed, because ONNX has no sums of uint32.
    """
    bits = bits.reshape(*bits.shape[:-1], -1, _WORD)
    weights = np.left_shift(np.uint32(1), np.arange(_WORD, dtype=np.uint32)).view(np.int32)
    return jnp.sum(jnp.where(bits, weights, 0), axis=-1, dtype=jnp.int32)
