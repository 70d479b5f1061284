"""SSD's augmentation on the host, image by image in NumPy and OpenCV.

Most implementations do this in the workers of a PyTorch DataLoader; here it is a baseline for
benchmarks.input_pipeline. The steps and ranges are as in scratchdet_jax/ops/augment.py, with
linear interpolation only.
"""

import cv2
import numpy as np

MEAN = np.float32([123.0, 117.0, 104.0])  # RGB
MIN_IOUS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.0)  # 0.0: no constraint
TRIALS = 50


def augment(
    rng: np.random.Generator, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Augments one training sample.

    Args:
        rng: the random numbers of this sample.
        image: uint8 [h, w, 3] RGB.
        boxes: float32 [n, 4], (ymin, xmin, ymax, xmax) in [0, 1].
        labels: int32 [n].
        side: the size S of the network's input, pixels.

    Returns:
        float32 [3, S, S] with the mean subtracted; the remaining boxes and labels.
    """
    height, width = image.shape[:2]
    pixels = _photometric(rng, image.astype(np.float32))
    boxes = boxes * np.float32([height, width, height, width])
    pixels, boxes = _expand(rng, pixels, boxes)
    pixels, boxes, labels = _crop(rng, pixels, boxes, labels)
    height, width = pixels.shape[:2]
    boxes = boxes / np.float32([height, width, height, width])
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
        boxes = np.stack([boxes[:, 0], 1 - boxes[:, 3], boxes[:, 2], 1 - boxes[:, 1]], 1)
    pixels = cv2.resize(pixels, (side, side)) - MEAN
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), boxes, labels


def _photometric(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    if rng.random() < 0.5:
        pixels += np.float32(rng.uniform(-32, 32))
    contrast_first = rng.random() < 0.5
    if contrast_first:
        pixels = _contrast(rng, pixels)
    hsv = cv2.cvtColor(pixels.clip(0, 255), cv2.COLOR_RGB2HSV)
    if rng.random() < 0.5:
        hsv[..., 1] *= np.float32(rng.uniform(0.5, 1.5))
    if rng.random() < 0.5:
        hsv[..., 0] = (hsv[..., 0] + np.float32(2 * rng.uniform(-18, 18))) % 360
    pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if not contrast_first:
        pixels = _contrast(rng, pixels)
    return pixels.clip(0, 255)


def _contrast(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    return pixels * np.float32(rng.uniform(0.5, 1.5)) if rng.random() < 0.5 else pixels


def _expand(
    rng: np.random.Generator, pixels: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    if rng.random() >= 0.5:
        return pixels, boxes
    height, width = pixels.shape[:2]
    ratio = rng.uniform(1, 4)
    top = int(rng.uniform(0, height * (ratio - 1)))
    left = int(rng.uniform(0, width * (ratio - 1)))
    canvas = np.empty((int(height * ratio), int(width * ratio), 3), np.float32)
    canvas[:] = MEAN
    canvas[top : top + height, left : left + width] = pixels
    return canvas, boxes + np.float32([top, left, top, left])


def _crop(
    rng: np.random.Generator, pixels: np.ndarray, boxes: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    height, width = pixels.shape[:2]
    while len(boxes):
        choice = rng.integers(len(MIN_IOUS) + 1)
        if choice == len(MIN_IOUS):
            break
        for _ in range(TRIALS):
            h, w = rng.uniform(0.3, 1) * height, rng.uniform(0.3, 1) * width
            if not 0.5 <= h / w <= 2:
                continue
            top, left = rng.uniform(0, height - h), rng.uniform(0, width - w)
            window = np.array([top, left, top + h, left + w], np.float32).astype(int)
            if _iou(window, boxes).max() < MIN_IOUS[choice]:
                continue
            centre = (boxes[:, :2] + boxes[:, 2:]) / 2
            inside = np.all((centre > window[:2]) & (centre < window[2:]), axis=1)
            if not inside.any():
                continue
            low, high = np.tile(window[:2], 2), np.tile(window[2:], 2)
            kept = boxes[inside].clip(low, high) - low
            cut = pixels[window[0] : window[2], window[1] : window[3]]
            return cut, kept.astype(np.float32), labels[inside]
    return pixels, boxes, labels


def _iou(window: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Computes the IoU [n] of one window with boxes [n, 4]."""
    sides = np.minimum(window[2:], boxes[:, 2:]) - np.maximum(window[:2], boxes[:, :2])
    overlap = np.prod(sides.clip(0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return overlap / (np.prod(window[2:] - window[:2]) + areas - overlap)
