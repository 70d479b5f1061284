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

from scratchdet_jax.config.scales import Scale
from scratchdet_jax.detector import Detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation.detections import overlaps
from scratchdet_jax.models import feature_sizes
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
) -> Callable[[Any, dict[str, jax.Array]], Detections]:
    """Makes the function `(variables, batch) → Detections` [B, K] of one scale.

    The batch holds `image` uint8 [B, H, W, 3] and `size` int32 [B, 2]. Boxes refer to the image
    before any flip.
    """
    detector = detector._replace(anchors=anchors_at(detector, scale.size, scale.size))

    def step(variables: Any, batch: dict[str, jax.Array]) -> Detections:
        with jax.named_scope("inputs"):
            images = jax.vmap(lambda image, size: resize(image, size, scale.size))(
                batch["image"], batch["size"]
            )
            images = detector.normalize(images)
        if not scale.flip:
            return detector.detect(variables, images)
        return mirror(detector.detect(variables, images[:, :, ::-1]))

    return step


def mirror(found: Detections) -> Detections:
    """Mirrors the boxes of detections left–right; empty slots stay 0."""
    ymin, xmin, ymax, xmax = jnp.moveaxis(found.boxes, -1, 0)
    boxes = jnp.stack([ymin, 1 - xmax, ymax, 1 - xmin], axis=-1)
    return found._replace(boxes=jnp.where(found.labels[..., None] > 0, boxes, 0))


def merge_scales(
    found: Sequence[Detections],
    scales: Sequence[Scale],
    original_sizes: np.ndarray,
    settings: ml_collections.ConfigDict,
) -> Detections:
    """Merges the detections of all scales of a batch, on the host.

    Args:
        found: one per scale, NumPy arrays [B, K, …].
        scales: the scales, in the same order.
        original_sizes: [B, 2] height and width of the images in pixels, for the size limits.
        settings: `config.eval`.

    Returns:
        NumPy arrays [B, max_detections, …].
    """
    merged = []
    for row, pixels in enumerate(original_sizes):
        boxes = np.concatenate([one.boxes[row] for one in found])
        scores = np.concatenate([one.scores[row] for one in found])
        labels = np.concatenate(
            [
                np.where(kept_by_size(one.boxes[row], pixels, scale, settings), one.labels[row], 0)
                for one, scale in zip(found, scales, strict=True)
            ]
        )
        origin = np.repeat(np.arange(len(found)), [len(one.labels[row]) for one in found])
        merged.append(
            merge_image(
                Detections(boxes, scores, labels),
                origin,
                iou_threshold=settings.nms_iou,
                vote=settings.multiscale_merge == "vote",
                max_detections=settings.max_detections,
            )
        )
    return Detections(*(np.stack(values) for values in zip(*merged, strict=True)))


def kept_by_size(
    boxes: np.ndarray, pixels: np.ndarray, scale: Scale, settings: ml_collections.ConfigDict
) -> np.ndarray:
    """Returns which boxes [K, 4] a scale keeps, bool [K].

    ":small" keeps a box whose shorter side is below `multiscale_small` pixels of the original
    image, ":large" a box whose longer side is above `multiscale_large`.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]) * pixels
    if scale.keep == "small":
        return sides.min(axis=1) < settings.multiscale_small
    if scale.keep == "large":
        return sides.max(axis=1) > settings.multiscale_large
    return np.ones(len(boxes), bool)


def merge_image(
    found: Detections, origin: np.ndarray, *, iou_threshold: float, vote: bool, max_detections: int
) -> Detections:
    """Merges the detections of one image by greedy NMS or box voting per class; NumPy.

    In descending order of score, a detection absorbs the later ones of its class that overlap it by
    more than the threshold. Detections of the same scale have already passed NMS, so only those of
    different scales are compared: a single scale is returned unchanged. Box voting (Gidaris and
    Komodakis 2015) then replaces the box by the mean of itself and the absorbed boxes, weighted by
    score; the score is unchanged. Equal scores keep the order of the input.

    Args:
        found: [N], in any order; label 0 is an empty slot.
        origin: int [N], the scale of each detection.
        iou_threshold: IoU above which a detection is absorbed.
        vote: box voting instead of plain NMS.
        max_detections: K.

    Returns:
        K slots in descending order of score, empty ones last.
    """
    used = np.flatnonzero(found.labels > 0)
    used = used[np.argsort(-found.scores[used], kind="stable")]
    boxes, scores, labels = (np.asarray(values)[used] for values in found)
    origin, result, kept = origin[used], boxes.copy(), np.zeros(len(used), bool)
    for label in np.unique(labels):
        index = np.flatnonzero(labels == label)
        meets = overlaps(boxes[index], boxes[index]) > iou_threshold
        meets &= origin[index][:, None] != origin[index]
        free = np.ones(len(index), bool)
        for i, position in enumerate(index):
            if not free[i]:
                continue
            free[i], kept[position] = False, True
            members = np.flatnonzero(meets[i] & free)
            free[members] = False
            if vote and members.size:
                group = index[np.append(i, members)]
                result[position] = np.average(
                    boxes[group].astype(np.float64), axis=0, weights=scores[group]
                )
    best = np.flatnonzero(kept)[:max_detections]
    spare = max_detections - len(best)
    return Detections(
        np.pad(result[best], ((0, spare), (0, 0))),
        np.pad(scores[best], (0, spare)),
        np.pad(labels[best], (0, spare)),
    )
