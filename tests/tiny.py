"""A detector small enough to compile and train in the tests, and random batches for it."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs import shapes


def tiny_config(**overrides) -> ml_collections.ConfigDict:
    """The shapes recipe at 64 px and the least width; `overrides` are by dotted field name."""
    config = shapes.get_config()
    config.image_size = 64
    config.data.canvas = (64, 64)
    config.data.max_boxes = 4
    config.model.width = 0.125
    config.batch_size = 16
    config.num_steps = 20
    config.eval.batch_size = 8
    config.eval.candidates_per_class = 50
    config.eval.max_detections = 20
    config.optimizer.warmup_steps = 5
    config.optimizer.learning_rate = 0.02
    config.augment.crop_trials = 10
    config.log_every = 1
    config.update_from_flattened_dict(overrides)
    return config.lock()


def random_variables(model, image_size: int, rng: np.random.Generator) -> dict:
    """Random `params` and `batch_stats` of a network, without compiling its initialisation.

    Activations keep their scale, and BatchNorm's statistics are not trivial.
    """
    images = jnp.zeros((1, image_size, image_size, 3))
    shapes = jax.eval_shape(lambda: model.init({"params": jax.random.key(0)}, images, train=False))

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if len(leaf.shape) > 1:
            spread = (2 / np.prod(leaf.shape[:-1])) ** 0.5
            return rng.normal(0, spread, leaf.shape).astype(np.float32)
        return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)

    return {g: jax.tree.map(draw, shapes.get(g, {})) for g in ("params", "batch_stats")}


def random_batch(config, seed: int, *, parts: int = 1) -> dict[str, np.ndarray]:
    """A batch [parts, B, …] of noise images with a few bright boxes; some images have none."""
    rng = np.random.default_rng(seed)
    count = config.batch_size // parts
    height, width = config.data.canvas
    slots = config.data.max_boxes
    corner = rng.uniform(0, 0.6, (parts, count, slots, 2))
    side = rng.uniform(0.15, 0.4, (parts, count, slots, 2))
    real = np.arange(slots) < rng.integers(0, slots + 1, (parts, count, 1))
    boxes = np.where(real[..., None], np.concatenate([corner, corner + side], -1), 0)
    images = rng.integers(0, 120, (parts, count, height, width, 3))
    for p, i, m in np.argwhere(real):
        y0, x0, y1, x1 = (boxes[p, i, m] * [height, width, height, width]).astype(int)
        images[p, i, y0:y1, x0:x1, m % 3] += 120
    return {
        "image": images.astype(np.uint8),
        "size": np.broadcast_to(np.int32([height, width]), (parts, count, 2)).copy(),
        "original_size": np.broadcast_to(np.int32([height, width]), (parts, count, 2)).copy(),
        "boxes": boxes.astype(np.float32),
        "labels": np.where(real, rng.integers(1, 4, real.shape), 0).astype(np.int32),
        "ignore": np.zeros(real.shape, bool),
        "id": np.arange(parts * count, dtype=np.int32).reshape(parts, count),
    }
