"""The doctor's pictures: photos with boxes, and training samples as the network sees them."""

import base64
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from scratchdet_jax.data import images
from scratchdet_jax.data.loading import TrainingOrder
from scratchdet_jax.data.records import DetectionSource, Example
from scratchdet_jax.detector import augment_options
from scratchdet_jax.ops.augment import augment
from scratchdet_jax.tools.drawing import class_color, draw_detections
from scratchdet_jax.training.step import example_keys

_QUALITY = 82  # of JPEG
IGNORED = (150, 150, 150)
"""Colour of difficult and crowd boxes in whole photos."""


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
    """An image with its boxes in their classes' colours, ignored ones in grey.

    Args:
        example: of a source.
        caption: beneath.
        side: of the square that it is reduced or enlarged to fit, in pixels.
        box: if given, only this box is drawn, in its class's colour, and the picture is a part of
            the image around it.

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
    """The part of an image around a box, and its upper left corner (y, x)."""
    sides = np.array(image.shape[:2])
    extent = max(5 * (corners[2:] - corners[:2]).max(), 0.2 * sides.min(), 16)
    extent = np.minimum(sides, round(extent))
    start = np.clip((corners[:2] + corners[2:] - extent) / 2, 0, sides - extent).astype(int)
    end = start + extent
    return np.ascontiguousarray(image[start[0] : end[0], start[1] : end[1]]), start


def training_samples(
    source: DetectionSource, config: ml_collections.ConfigDict, count: int
) -> list[Picture]:
    """The first images that training would see with this recipe, seed and data, augmented.

    Image i is row i % batch_size of step i // batch_size, in training's order, and its random
    draws are those of that step. Pixels are shown before the mean is subtracted.

    Args:
        source: the training split.
        config: a run's config.
        count: of samples.

    Returns:
        The samples with boxes and class names; images that cannot be decoded are left out.
    """
    order = TrainingOrder(len(source), config.seed, config.batch_size)
    options, size = augment_options(config), config.image_size
    run = jax.jit(lambda key, *example: augment(key, *example, options, size))
    pictures = []
    for i in range(count):
        example = source[order[i]]
        try:
            arrays = _on_canvas(example, config)
        except ValueError:
            continue
        step, row = divmod(i, config.batch_size)
        key = example_keys(config.seed, step, jnp.asarray([row]))[0]
        image, boxes, labels, ignore = (np.asarray(values) for values in run(key, *arrays))
        if not config.data.train_on_ignored:
            labels = np.where(ignore, 0, labels)
        drawn = draw_detections(
            np.clip(np.round(image), 0, 255).astype(np.uint8),
            boxes * size,
            labels,
            None,
            source.class_names,
        )
        pictures.append(to_picture(drawn, example["filename"]))
    return pictures


def _on_canvas(example: Example, config: ml_collections.ConfigDict) -> tuple[np.ndarray, ...]:
    """Image, size, boxes, labels and ignore, padded as the loader pads them."""
    slots = max(config.data.max_boxes, len(example["labels"]))
    image, _ = images.decode_to_canvas(
        example["image"], tuple(config.data.canvas), example["orientation"]
    )
    canvas = np.zeros((*config.data.canvas, 3), np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    padded = []
    for key, shape in (("boxes", (slots, 4)), ("labels", (slots,)), ("ignore", (slots,))):
        values = np.zeros(shape, example[key].dtype)
        values[: len(example[key])] = example[key]
        padded.append(values)
    return canvas, np.int32(image.shape[:2]), *padded
