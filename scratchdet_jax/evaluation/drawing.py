"""Draws detections: boxes with class names and scores, and several images in a grid."""

import colorsys
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from scratchdet_jax.evaluation.detections import ImageGroundTruth
from scratchdet_jax.files import write_atomically, writing
from scratchdet_jax.paths import user_path

# Legible text would cover too much of a smaller image.
SMALLEST_SIDE = 384
_PNG_HEADER = 33  # bytes of the signature and the first chunk
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


def class_color(label: int) -> tuple[int, int, int]:
    """Returns the colour (R, G, B) of a class: fixed, and unlike its neighbours'.

    Hues advance by the golden ratio, so any first n are spread over the circle. Brightness and
    saturation alternate because hues alone become similar with many classes.
    """
    hue = (0.61803398875 * (label - 1)) % 1.0
    saturation, value = ((0.95, 1.0), (0.6, 1.0), (0.95, 0.8))[(label - 1) % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(
    image: np.ndarray,
    boxes_pixels: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    class_names: Sequence[str],
    *,
    ground_truth: ImageGroundTruth | None = None,
) -> np.ndarray:
    """Draws boxes with class names and scores on a copy of an image.

    A small image is first enlarged until its longer side is at least `SMALLEST_SIDE`. Boxes are
    drawn in ascending order of score and clipped to the image; boxes with label 0 or non-finite
    coordinates are skipped.

    Args:
        image: uint8 [H, W, 3], RGB.
        boxes_pixels: float [k, 4], (ymin, xmin, ymax, xmax) in pixels of `image`.
        labels: int [k], 1…C; 0 is an empty slot.
        scores: float [k], or None to draw names without scores.
        class_names: [C]; label i is class_names[i − 1].
        ground_truth: drawn below as dashed white boxes, ignored ones in grey.

    Returns:
        uint8 [H', W', 3], RGB.
    """
    picture, scale = _enlarged(image)
    if ground_truth is not None:
        for box, label, ignore in zip(*ground_truth, strict=True):
            if label > 0 and np.isfinite(box).all():
                color = (160, 160, 160) if ignore else _WHITE
                _draw_dashed(picture, _corners(box, scale, picture.shape), color)
    boxes_pixels = np.asarray(boxes_pixels, np.float64).reshape(-1, 4)
    labels = np.asarray(labels)
    order = np.arange(len(labels)) if scores is None else np.argsort(scores, kind="stable")
    drawn = [i for i in order if labels[i] > 0 and np.isfinite(boxes_pixels[i]).all()]
    corners = {i: _corners(boxes_pixels[i], scale, picture.shape) for i in drawn}
    # Names are drawn after all boxes so that no box crosses a name.
    for i in drawn:
        left, top, right, bottom = corners[i]
        cv2.rectangle(
            picture, (left, top), (right, bottom), class_color(int(labels[i])), _line_width(picture)
        )
    for i in drawn:
        text = class_names[labels[i] - 1]
        if scores is not None:
            text = f"{text} {scores[i]:.2f}"
        _draw_label(picture, corners[i], text, class_color(int(labels[i])))
    return picture


def grid(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Arranges images in rows, each centred in a cell of the largest height and width.

    Args:
        images: uint8 [H, W, 3] each, at least one.
        columns: cells per row; fewer if there are fewer images.

    Returns:
        uint8 [H', W', 3], on a light grey background.
    """
    if not images or columns < 1:
        raise ValueError(f"a grid needs images and columns: got {len(images)} and {columns}")
    columns = min(columns, len(images))
    gap = 8
    height = max(image.shape[0] for image in images)
    width = max(image.shape[1] for image in images)
    rows = math.ceil(len(images) / columns)
    shape = (rows * (height + gap) + gap, columns * (width + gap) + gap, 3)
    picture = np.full(shape, 230, np.uint8)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        top = gap + row * (height + gap) + (height - image.shape[0]) // 2
        left = gap + column * (width + gap) + (width - image.shape[1]) // 2
        picture[top : top + image.shape[0], left : left + image.shape[1]] = image
    return picture


def save_png(path: str | Path, image: np.ndarray, software: str = "") -> None:
    """Writes an RGB uint8 image [H, W, 3] as a PNG file; creates its folder if necessary.

    The file is replaced in one step. `software` is what drew it, kept in the file's Software text
    near its beginning.

    Raises:
        UserError: the file cannot be written.
    """
    path = user_path(path)
    encoded = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()
    text = b"tEXtSoftware\0" + software.encode("latin-1")
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    content = encoded[:_PNG_HEADER] + (chunk if software else b"") + encoded[_PNG_HEADER:]
    with writing(f"picture {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(content))


def _enlarged(image: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns a copy to draw on, at least `SMALLEST_SIDE` on the longer side, and its scale."""
    height, width = image.shape[:2]
    scale = max(1.0, SMALLEST_SIDE / max(height, width))
    if scale == 1.0:
        return np.ascontiguousarray(image).copy(), 1.0
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), scale


def _corners(box: np.ndarray, scale: float, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Returns (left, top, right, bottom), clipped to the picture."""
    ymin, xmin, ymax, xmax = np.asarray(box, np.float64) * scale
    x = np.clip((xmin, xmax), 0, shape[1] - 1)
    y = np.clip((ymin, ymax), 0, shape[0] - 1)
    return round(x[0]), round(y[0]), round(x[1]), round(y[1])


def _line_width(picture: np.ndarray) -> int:
    return max(2, round(max(picture.shape[:2]) / 250))


def _draw_dashed(
    picture: np.ndarray, corners: tuple[int, int, int, int], color: tuple[int, int, int]
) -> None:
    """Draws a dashed box on a dark outline, which is visible on any background."""
    left, top, right, bottom = corners
    width = _line_width(picture)
    dash = 4 * width
    cv2.rectangle(picture, (left, top), (right, bottom), (40, 40, 40), width)
    for x in range(left, right, 2 * dash):
        for y in (top, bottom):
            cv2.line(picture, (x, y), (min(x + dash, right), y), color, width)
    for y in range(top, bottom, 2 * dash):
        for x in (left, right):
            cv2.line(picture, (x, y), (x, min(y + dash, bottom)), color, width)


def _draw_label(
    picture: np.ndarray, corners: tuple[int, int, int, int], text: str, color: tuple[int, int, int]
) -> None:
    """Draws a filled tag with the text above the box, or inside it if there is no room above."""
    height, width = picture.shape[:2]
    scale = max(0.45, max(height, width) / 1100)
    thickness = max(1, round(scale * 1.6))
    (text_width, text_height), baseline = cv2.getTextSize(text, _FONT, scale, thickness)
    pad = 2 + round(2 * scale)
    tag_height = text_height + baseline + pad
    left = max(0, min(corners[0], width - text_width - 2 * pad))
    top = corners[1] - tag_height if corners[1] >= tag_height else corners[1]
    top = max(0, min(top, height - tag_height))
    right = min(width - 1, left + text_width + 2 * pad)
    cv2.rectangle(picture, (left, top), (right, top + tag_height - 1), color, cv2.FILLED)
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = _BLACK if luminance > 120 else _WHITE
    origin = (left + pad, top + text_height + pad // 2 + 1)
    cv2.putText(picture, text, origin, _FONT, scale, ink, thickness, cv2.LINE_AA)
