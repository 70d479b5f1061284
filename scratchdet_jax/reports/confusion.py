"""The confusion matrix of a detector: which class is taken for which."""

from collections.abc import Mapping

import numpy as np

from scratchdet_jax.evaluation.detections import ImageDetections, ImageGroundTruth, overlaps


def confusion_matrix(
    detections: Mapping[str, ImageDetections],
    ground_truth: Mapping[str, ImageGroundTruth],
    class_count: int,
    *,
    score: float = 0.5,
    iou: float = 0.5,
) -> np.ndarray:
    """Counts pairs of ground truth and detection, whatever their classes.

    In descending order of IoU, a detection and a box of the ground truth that are both still free
    become a pair. What is left is background. Left-over detections that meet an ignored box are
    left out.

    Args:
        detections: by image id; images without an entry have no detections.
        ground_truth: by image id, all images of the split.
        class_count: C.
        score: detections with a lower score are left out.
        iou: smallest IoU of a pair.

    Returns:
        int64 [C + 1, C + 1]; row: the class of the ground truth, column: that of the detection;
        0 is the background: column 0 counts objects that were not found, row 0 detections of
        nothing.
    """
    matrix = np.zeros((class_count + 1, class_count + 1), np.int64)
    for image_id, truth in ground_truth.items():
        real = truth.labels > 0
        boxes, labels = truth.boxes_pixels[real], truth.labels[real]
        ignore = truth.ignore[real]
        counted = labels[~ignore]
        found = detections.get(image_id)
        if found is None:
            np.add.at(matrix, (counted, 0), 1)
            continue
        shown = (found.scores >= score) & (found.labels > 0)
        guessed = found.labels[shown]
        overlap = overlaps(found.boxes_pixels[shown], boxes[~ignore])
        rows, columns = np.nonzero(overlap >= iou)
        free_found, free_truth = np.ones(len(guessed), bool), np.ones(len(counted), bool)
        for pair in np.argsort(-overlap[rows, columns], kind="stable"):
            row, column = rows[pair], columns[pair]
            if free_found[row] and free_truth[column]:
                free_found[row] = free_truth[column] = False
                matrix[counted[column], guessed[row]] += 1
        np.add.at(matrix, (counted[free_truth], 0), 1)
        on_ignored = overlaps(found.boxes_pixels[shown], boxes[ignore]) >= iou
        np.add.at(matrix[0], guessed[free_found & ~on_ignored.any(axis=1)], 1)
    return matrix
