"""Photos with boxes as data URIs."""

import base64
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from scratchdet_jax.data import images
from scratchdet_jax.data.records import Example
from scratchdet_jax.evaluation.drawing import class_color

_QUALITY = 82  # of JPEG
IGNORED = (150, 150, 150)
"""Colour of difficult and crowd boxes in full photos."""


class Picture(NamedTuple):
    """A picture as a data URI, its (height, width), and what it shows."""

    uri: str
    size: tuple[int, int]
    caption: str


def to_picture(image: np.ndarray, caption: str) -> Picture:
    """Encodes uint8 [h, w, 3] RGB as JPEG."""
    parameters = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    encoded = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), parameters)[1]
    text = base64.b64encode(encoded.tobytes()).decode()
    return Picture(f"data:image/jpeg;base64,{text}", image.shape[:2], caption)


def photo(example: Example, caption: str, side: int, box: int | None = None) -> Picture | None:
    """Draws an image with boxes in the colours of their classes, ignored boxes in grey.

    The picture is scaled to fit a square of `side` pixels. Given `box`, an index, only this box is
    drawn, in its class's colour, and the picture shows only its surroundings.

    Returns:
        None if the image cannot be decoded.
    """
    canvas = (4 * side, 4 * side) if box is not None else (2 * side, 2 * side)
    try:
        image, _ = images.decode_to_canvas(example["image"], canvas, example["orientation"])
    except ValueError:
        return None
    corners = example["boxes"] * np.tile(image.shape[:2], 2)
    if box is not None:
        image, corner = _around(image, corners[box])
        corners = corners - np.tile(corner, 2)
    scale = side / max(image.shape[:2])
    size = [max(1, round(length * scale)) for length in image.shape[1::-1]]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    for i in range(len(corners)) if box is None else (box,):
        ymin, xmin, ymax, xmax = np.round(corners[i] * scale).astype(int).tolist()
        grey = example["ignore"][i] and box is None
        color = IGNORED if grey else class_color(int(example["labels"][i]))
        cv2.rectangle(image, (xmin, ymin), (xmax, ymax), color, 2)
    return to_picture(image, caption)


def _around(image: np.ndarray, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the part of an image around a box, and its upper left corner (y, x)."""
    sides = np.array(image.shape[:2])
    extent = max(5 * (corners[2:] - corners[:2]).max(), 0.2 * sides.min(), 16)
    extent = np.minimum(sides, round(extent))
    start = np.clip((corners[:2] + corners[2:] - extent) / 2, 0, sides - extent).astype(int)
    end = start + extent
    return np.ascontiguousarray(image[start[0] : end[0], start[1] : end[1]]), start


def class_colors(class_names: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Returns the colours in which the classes' boxes are drawn, by name."""
    return {name: class_color(n) for n, name in enumerate(class_names, start=1)}
