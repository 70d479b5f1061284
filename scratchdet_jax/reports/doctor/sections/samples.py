"""Training samples as the network sees them, for the page."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from scratchdet_jax.data import images
from scratchdet_jax.data.loading import TrainingOrder
from scratchdet_jax.data.records import Example
from scratchdet_jax.detector import augment_options
from scratchdet_jax.evaluation.drawing import draw_detections
from scratchdet_jax.ops.augment import augment
from scratchdet_jax.reports.doctor.study import DataSetStudy
from scratchdet_jax.reports.page.pictures import Picture, to_picture
from scratchdet_jax.training.step import example_keys


def draw_samples(study: DataSetStudy, count: int) -> list[Picture]:
    """Draws the first images of training with this recipe, seed and data, augmented.

    Image i is row i % batch_size of step i // batch_size, in training's order, and its random
    draws are those of that step. Images that cannot be decoded are skipped.
    """
    source, config = study.opened.training, study.config
    order = TrainingOrder(len(source), config.seed, config.batch_size)
    options, size = augment_options(config), config.image_size
    run = jax.jit(
        lambda key, image, valid, boxes, labels, ignore: augment(
            key, image, valid, boxes, labels, ignore, options, size
        )
    )
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
    """Returns image, size, boxes, labels and ignore, padded as the loader pads them."""
    slots = max(config.data.max_boxes, len(example["labels"]))
    image, _ = images.decode_to_canvas(
        example["image"], tuple(config.data.canvas), example["orientation"]
    )
    canvas = np.zeros((*config.data.canvas, 3), np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    free = slots - len(example["labels"])
    boxes = np.pad(example["boxes"], ((0, free), (0, 0)))
    labels, ignore = (np.pad(example[key], (0, free)) for key in ("labels", "ignore"))
    return canvas, np.array(image.shape[:2], np.int32), boxes, labels, ignore
