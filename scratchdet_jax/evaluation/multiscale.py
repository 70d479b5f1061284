"""Multi-scale testing ("300+"): merges the detections of several input sizes and flips.

The same fully convolutional network runs on each size, with anchors as many pixels large as in
training, and each scale makes its own detections. Large inputs may keep only small objects and
small inputs only large ones. The remaining detections are merged class by class.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from scratchdet_jax.config.scales import Scale, merge_method
from scratchdet_jax.detector import Detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation.detections import overlaps
from scratchdet_jax.models.ssd import feature_sizes
from scratchdet_jax.ops.anchors import AnchorSpecification, make_anchors
from scratchdet_jax.ops.nms import Detections
from scratchdet_jax.ops.resample import resize

_FAR = 1024  # pixels: a multiple of every network stride


def anchors_at(detector: Detector, height: int, width: int) -> np.ndarray:
    """Returns the detector's anchors for an input of height × width pixels, float32 [A, 4].

    The network predicts boxes relative to anchors of a fixed size in pixels, so the anchors keep
    their sides in pixels, as with SSD's PriorBox layer. A step equal to the network's stride of its
    level is unchanged. Any other step (SSD's 100 and 300) is scaled so that the level's cells span
    the same share of the image.

    Raises:
        UserError: the network or the anchors have no cells at this size.
    """
    config = detector.config
    trained = config.image_size
    if height == width == trained:
        return detector.anchors
    try:
        maps = feature_sizes(detector.model, (height, width))
        here = feature_sizes(detector.model, trained)
        far = feature_sizes(detector.model, trained + _FAR)
        steps = []
        for level, step in enumerate(config.anchors.steps):
            (cells, _), (far_cells, _) = here[level], far[level]
            share = step * cells / trained  # of the image that a cell stands for, times the cells
            if step == _FAR / (far_cells - cells):
                steps.append(step)
            else:
                steps.append((share * height / maps[level][0], share * width / maps[level][1]))
        fields = config.anchors.to_dict() | {"steps": tuple(steps)}
        specification = AnchorSpecification(image_size=trained, **fields)
        return make_anchors(specification, maps, (height, width))
    except UserError as error:
        raise UserError(
            f"config.eval.multiscale: size {height}x{width} cannot be used: {error}"
        ) from None


def make_scale_step(
    detector: Detector, scale: Scale
) -> Callable[[Any, dict[str, jax.Array]], Detections[jax.Array]]:
    """Makes the function `(variables, batch) → Detections` [B, K] of one scale.

    The batch holds `image` uint8 [B, H, W, 3] and `size` int32 [B, 2]. Boxes refer to the image
    before any flip.
    """
    shape = (scale.height, scale.width)
    detector = detector._replace(anchors=anchors_at(detector, *shape))

    def step(variables: Any, batch: dict[str, jax.Array]) -> Detections[jax.Array]:
        with jax.named_scope("inputs"):
            images = jax.vmap(lambda image, size: resize(image, size, shape))(
                batch["image"], batch["size"]
            )
            images = detector.normalize(images)
        if not scale.flip:
            return detector.detect(variables, images)
        return mirror(detector.detect(variables, images[:, :, ::-1]))

    return step


def mirror(found: Detections[jax.Array]) -> Detections[jax.Array]:
    """Mirrors the boxes of detections left–right; empty slots stay 0."""
    ymin, xmin, ymax, xmax = jnp.moveaxis(found.boxes, -1, 0)
    boxes = jnp.stack([ymin, 1 - xmax, ymax, 1 - xmin], axis=-1)
    return found._replace(boxes=jnp.where(found.labels[..., None] > 0, boxes, 0))


def merge_scales(
    found: Sequence[Detections[np.ndarray]],
    scales: Sequence[Scale],
    original_sizes: np.ndarray,
    settings: ml_collections.ConfigDict,
) -> Detections[np.ndarray]:
    """Merges the detections of all scales of a batch, on the host.

    Args:
        found: one per scale, NumPy arrays [B, K, …].
        scales: the scales, in the same order.
        original_sizes: [B, 2] height and width of the images in pixels.
        settings: `config.eval`.

    Returns:
        NumPy arrays [B, max_detections, …].
    """
    method = merge_method(settings)
    merged = []
    for row, pixels in enumerate(original_sizes):
        boxes = np.concatenate([one.boxes[row] for one in found])
        scores = np.concatenate([one.scores[row] for one in found])
        labels = np.concatenate(
            [
                np.where(kept_by(scale, one.boxes[row], pixels, settings), one.labels[row], 0)
                for one, scale in zip(found, scales, strict=True)
            ]
        )
        together = Detections(boxes, scores, labels)
        if method == "nms":
            origin = np.repeat(np.arange(len(found)), [len(one.labels[row]) for one in found])
            merged.append(
                suppress(together, origin, settings.nms_iou, max_detections=settings.max_detections)
            )
        else:
            merged.append(
                vote(
                    together,
                    pixels,
                    iou_threshold=settings.nms_iou,
                    soft_threshold=settings.score_threshold if method == "soft_vote" else None,
                    max_detections=settings.max_detections,
                )
            )
    return Detections(*(np.stack(values) for values in zip(*merged, strict=True)))


def kept_by(
    scale: Scale, boxes: np.ndarray, pixels: np.ndarray, settings: ml_collections.ConfigDict
) -> np.ndarray:
    """Returns which boxes [K, 4] of an image a scale keeps, bool [K].

    "small" stands for "below" `multiscale_small`, "large" for "above" `multiscale_large`. `pixels`
    are height and width of the original image.
    """
    if scale.keep in ("wide", "tall"):
        return np.full(len(boxes), (pixels[1] > pixels[0]) == (scale.keep == "wide"))
    ends = _inclusive(boxes, pixels)
    sides = ends[:, 2:] - ends[:, :2]
    if scale.keep in ("small", "below"):
        limit = settings.multiscale_small if scale.keep == "small" else scale.limit
        return sides.min(axis=1) < limit
    if scale.keep in ("large", "above"):
        limit = settings.multiscale_large if scale.keep == "large" else scale.limit
        return sides.max(axis=1) > limit
    return np.ones(len(boxes), bool)


def _inclusive(boxes: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Returns boxes [N, 4] in pixels; sides are last − first + 1, as in VOC and RefineDet."""
    return boxes * np.tile(np.asarray(pixels, np.float64), 2) + (0, 0, 1, 1)


def suppress(
    found: Detections[np.ndarray], origin: np.ndarray, iou_threshold: float, *, max_detections: int
) -> Detections[np.ndarray]:
    """Merges the detections of one image by greedy NMS per class; NumPy.

    In descending order of score, a detection removes the later ones of its class that overlap it by
    more than the threshold. Detections of the same scale have already passed NMS and are not
    compared: a single scale is returned unchanged. Equal scores keep the order of the input.

    Args:
        found: [N], in any order; label 0 is an empty slot.
        origin: int [N], the scale of each detection.
        iou_threshold: IoU above which a detection is removed.
        max_detections: K.

    Returns:
        K slots in descending order of score, empty ones last.
    """
    used, (boxes, scores, labels) = _by_score(found)
    origin, kept = origin[used], np.zeros(len(used), bool)
    for label in np.unique(labels):
        index = np.flatnonzero(labels == label)
        meets = overlaps(boxes[index], boxes[index]) > iou_threshold
        meets &= origin[index][:, None] != origin[index]
        free = np.ones(len(index), bool)
        for i, position in enumerate(index):
            if free[i]:
                kept[position] = True
                free &= ~meets[i]
    return _slots(boxes[kept], scores[kept], labels[kept], max_detections)


def vote(
    found: Detections[np.ndarray],
    pixels: np.ndarray,
    *,
    iou_threshold: float,
    soft_threshold: float | None,
    max_detections: int,
) -> Detections[np.ndarray]:
    """Merges the detections of one image by box voting per class, as RefineDet's test; NumPy.

    In descending order of score, a detection and the remaining ones of its class that overlap it by
    at least the threshold become one: its box is their mean, weighted by score, its score the
    highest. Detections of the same scale also vote together.

    Soft voting keeps, besides, each detection that has voted for a better one, with its own box and
    a score times 1 − IoU, if that reaches the soft threshold.

    Args:
        found: [N], in any order; label 0 is an empty slot. Equal scores keep this order.
        pixels: height and width of the original image: an IoU counts whole pixels (`_inclusive`).
        iou_threshold: IoU from which on detections vote together.
        soft_threshold: least score of what soft voting keeps; None: plain voting.
        max_detections: K.

    Returns:
        K slots in descending order of score, empty ones last.
    """
    _, (boxes, scores, labels) = _by_score(found)
    ends = _inclusive(boxes, pixels)
    results = []  # (boxes, scores, label) of each group
    for label in np.unique(labels):
        rest = np.flatnonzero(labels == label)
        while rest.size:
            best = rest[0]
            iou = overlaps(ends[[best]], ends[rest])[0]
            votes = iou >= iou_threshold
            votes[0] = True
            group, rest = rest[votes], rest[~votes]
            mean = boxes[best]
            if group.size > 1:
                weights = np.maximum(scores[group], np.finfo(np.float32).tiny)
                mean = np.average(boxes[group].astype(np.float64), axis=0, weights=weights)
            results.append((mean[None], scores[[best]], labels[[best]]))
            if soft_threshold is not None:
                others, softened = group[1:], scores[group[1:]] * (1 - iou[votes][1:])
                soft = (softened >= soft_threshold) & (softened > 0)
                results.append((boxes[others[soft]], softened[soft], labels[others[soft]]))
    if not results:
        return _slots(boxes, scores, labels, max_detections)
    boxes, scores, labels = (np.concatenate(values) for values in zip(*results, strict=True))
    order = np.argsort(-scores, kind="stable")
    return _slots(boxes[order], scores[order], labels[order], max_detections)


def _by_score(found: Detections[np.ndarray]) -> tuple[np.ndarray, Detections[np.ndarray]]:
    """Sorts the filled slots by descending score, equal ones in their order: indices, values."""
    used = np.flatnonzero(found.labels > 0)
    used = used[np.argsort(-found.scores[used], kind="stable")]
    return used, Detections(*(np.asarray(values)[used] for values in found))


def _slots(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, max_detections: int
) -> Detections[np.ndarray]:
    """Returns the first detections, in as many slots as `max_detections`."""
    spare = max(0, max_detections - len(labels))
    return Detections(
        np.pad(boxes[:max_detections].astype(np.float32), ((0, spare), (0, 0))),
        np.pad(scores[:max_detections].astype(np.float32), (0, spare)),
        np.pad(labels[:max_detections], (0, spare)),
    )
