"""Ground truth and detections of an image, as they are scored: in pixels, on the host."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from scratchdet_jax.errors import UserError
from scratchdet_jax.ops.nms import Detections


class ImageGroundTruth(NamedTuple):
    """The annotated boxes of one image.

    Attributes:
        boxes_pixels: float64 [n, 4], (ymin, xmin, ymax, xmax) in pixels of the original image.
        labels: int [n], 1…C; 0 is padding and is never scored.
        ignore: bool [n], difficult (VOC) or crowd (COCO).
    """

    boxes_pixels: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray


class ImageDetections(NamedTuple):
    """The detections of one image, in any order.

    Attributes:
        boxes_pixels: float64 [k, 4], (ymin, xmin, ymax, xmax) in pixels of the original image.
        scores: float [k].
        labels: int [k], 1…C; 0 is an empty slot and is never scored.
    """

    boxes_pixels: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


class FlatGroundTruth(NamedTuple):
    """The ground truth of a split, one row per box; `image` is the number of its image."""

    image: np.ndarray
    boxes_pixels: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray


class FlatDetections(NamedTuple):
    """The detections of a split, one row per detection; `image` is the number of its image."""

    image: np.ndarray
    boxes_pixels: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def flatten_ground_truth(
    ground_truth: Mapping[str, ImageGroundTruth], class_count: int
) -> FlatGroundTruth:
    """Puts the ground truth of all images into one table, in order, without padding.

    Args:
        ground_truth: by image id; an image's number is the position of its id.
        class_count: C, the largest valid label.

    Raises:
        UserError: a label is outside 0…C, or a box is not finite.
    """
    image, boxes, labels = _boxes_and_labels(ground_truth, class_count, "ground-truth")
    ignore = _joined([one.ignore for one in ground_truth.values()], bool)
    kept = labels != 0
    return FlatGroundTruth(image[kept], boxes[kept], labels[kept], ignore[kept])


def flatten_detections(
    detections: Mapping[str, ImageDetections], ground_truth: Collection[str], class_count: int
) -> FlatDetections:
    """Puts the detections of all images into one table, without empty slots.

    Images are in the order of the ground truth, so that ties between scores do not depend on the
    order in which the detections were gathered.

    Args:
        detections: by image id; images without an entry have no detections.
        ground_truth: the image ids, or a table by image id; images are numbered as in
            `flatten_ground_truth`.
        class_count: C, the largest valid label.

    Raises:
        UserError: an image is not in the ground truth, a label is outside 0…C, or a box or a score
            is not finite.
    """
    check_images(detections, ground_truth)
    number = {image_id: i for i, image_id in enumerate(ground_truth)}
    ids = sorted(detections, key=number.__getitem__)
    found = {image_id: detections[image_id] for image_id in ids}
    row, boxes, labels = _boxes_and_labels(found, class_count, "detection")
    scores = _joined([one.scores for one in found.values()], np.float64)
    kept = labels != 0
    _check_finite(scores, kept, row, ids, "detection score")
    image = np.array([number[image_id] for image_id in ids], np.int64)[row]
    return FlatDetections(image[kept], boxes[kept], scores[kept], labels[kept])


def check_images(detections: Collection[str], ground_truth: Collection[str]) -> None:
    """Checks that images with detections are in the ground truth; both are image ids.

    Raises:
        UserError: an image is not in the ground truth.
    """
    unknown = [image_id for image_id in detections if image_id not in ground_truth]
    if unknown:
        raise UserError(
            f"image {unknown[0]!r} has detections but is not in the ground truth (images not in "
            f"it: {len(unknown)} of {len(detections)}): score detections against the split they "
            "come from"
        )


def _boxes_and_labels(
    images: Mapping[str, ImageGroundTruth] | Mapping[str, ImageDetections],
    class_count: int,
    what: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joins and checks the boxes of all images: position of the image [n], boxes [n, 4], labels."""
    counts = [len(one.labels) for one in images.values()]
    position = np.repeat(np.arange(len(counts)), np.array(counts, np.int64))
    boxes = _joined([np.ravel(one.boxes_pixels) for one in images.values()], np.float64)
    boxes = boxes.reshape(-1, 4)
    labels = _joined([one.labels for one in images.values()], np.int64)
    ids = list(images)
    wrong = np.flatnonzero((labels < 0) | (labels > class_count))
    if wrong.size:
        raise UserError(
            f"image {ids[position[wrong[0]]]!r} has the {what} label {labels[wrong[0]]}, but "
            f"labels must be from 0 to {class_count}, the number of classes: use the class names "
            "the labels were made with"
        )
    _check_finite(boxes, labels != 0, position, ids, f"{what} box")
    return position, boxes, labels


def _joined(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    """Joins arrays [n], of which there may be none."""
    return np.concatenate([np.zeros(0, dtype), *arrays], dtype=dtype, casting="unsafe")


def _check_finite(
    values: np.ndarray, kept: np.ndarray, position: np.ndarray, ids: list[str], what: str
) -> None:
    finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    wrong = np.flatnonzero(kept & ~finite)
    if wrong.size:
        raise UserError(
            f"image {ids[position[wrong[0]]]!r}: {what} {values[wrong[0]]} is not finite and "
            "cannot be scored"
        )


def to_image_detections(
    found: Detections[np.ndarray], row: int, original_size: np.ndarray
) -> ImageDetections:
    """Returns one image's detections without empty slots, in pixels of the original image.

    Args:
        found: boxes [B, K, 4], scores and labels [B, K].
        row: the image's position in the batch.
        original_size: the image's height and width in pixels, [2].
    """
    used = found.labels[row] > 0
    scale = np.tile(np.asarray(original_size, np.float64), 2)
    return ImageDetections(
        found.boxes[row][used] * scale, found.scores[row][used], found.labels[row][used]
    )


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes the IoU of all pairs of boxes [N, 4] and [M, 4], float64 [N, M]; 0 for empty boxes.

    Ends are exclusive, as in `ops.boxes.iou`, of which this is the host's version.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    low = np.maximum(a[:, None, :2], b[:, :2])
    high = np.minimum(a[:, None, 2:], b[:, 2:])
    intersection = np.maximum(high - low, 0).prod(axis=-1)
    areas = (np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=-1) for boxes in (a, b))
    union = np.add.outer(*areas) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
