"""Images in, detections out: what the tools share."""

from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np

from scratchdet_jax.data.images import fit_to_canvas
from scratchdet_jax.detector import Detector, detect, normalize
from scratchdet_jax.evaluation.detections import ImageDetections, to_image_detections
from scratchdet_jax.ops.resample import resize


def make_predictor(
    config: ml_collections.ConfigDict, detector: Detector, variables: Any
) -> Callable[[np.ndarray], ImageDetections]:
    """A function from an image uint8 [H, W, 3] RGB to its detections, in its own pixels."""
    height, width = config.data.canvas

    @jax.jit
    def run(variables: Any, canvas: jax.Array, size: jax.Array) -> Any:
        image = normalize(resize(canvas, size, config.image_size), config.normalize)
        return detect(detector, config, variables, image[None])

    def predict(image: np.ndarray) -> ImageDetections:
        reduced = fit_to_canvas(image, (height, width))
        canvas = np.zeros((height, width, 3), np.uint8)
        canvas[: reduced.shape[0], : reduced.shape[1]] = reduced
        found = jax.device_get(run(variables, canvas, np.int32(reduced.shape[:2])))
        return to_image_detections(found, 0, np.asarray(image.shape[:2]))

    return predict
