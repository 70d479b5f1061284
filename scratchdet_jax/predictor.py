"""Detects objects in single images; shared by the tools and the Python interface."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from scratchdet_jax.data.images import decode_image, fit_to_canvas, read_header
from scratchdet_jax.detector import Detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation.detections import ImageDetections, to_image_detections
from scratchdet_jax.ops.nms import Detections
from scratchdet_jax.ops.resample import resize
from scratchdet_jax.run.open import load_detector, open_run, split_run


class Predictor:
    """A trained detector as a function of one image; compiles at the first call."""

    def __init__(self, detector: Detector, variables: Any) -> None:
        """`variables`: `params` and `batch_stats` of the detector."""
        self._detector, self._variables = detector, variables
        self._run = jax.jit(self._detect)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels 1…C."""
        return self._detector.class_names

    def __call__(self, image: np.ndarray | str | Path) -> ImageDetections:
        """Detects objects in one image.

        Args:
            image: uint8 [H, W, 3] RGB of any size, or the path of an image file.

        Returns:
            Boxes in pixels of the image, scores in descending order, and labels; no empty slots.
            `config.eval` of the run holds the thresholds.

        Raises:
            UserError: the file is missing or cannot be decoded, or the array has another dtype or
                shape.
        """
        if isinstance(image, str | Path):
            image = read_image(image)
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
            found = f"{getattr(image, 'dtype', type(image).__name__)} {np.shape(image)}"
            raise UserError(f"an image must be an array uint8 [H, W, 3] in RGB order, not {found}")
        height, width = self._detector.config.data.canvas
        reduced = fit_to_canvas(image, (height, width))
        canvas = np.zeros((height, width, 3), np.uint8)
        canvas[: reduced.shape[0], : reduced.shape[1]] = reduced
        found = self._run(self._variables, canvas, np.int32(reduced.shape[:2]))
        return to_image_detections(jax.device_get(found), 0, np.asarray(image.shape[:2]))

    def _detect(self, variables: Any, canvas: jax.Array, size: jax.Array) -> Detections:
        image = resize(canvas, size, self._detector.config.image_size)
        return self._detector.detect(variables, self._detector.normalize(image)[None])


def load(run: str | Path) -> Predictor:
    """Loads a trained detector.

    Args:
        run: WORKDIR or WORKDIR@CHECKPOINT; CHECKPOINT is "best" (the default), "latest" or a step.

    Raises:
        UserError: there is no such run or checkpoint, or it cannot be read.
    """
    workdir, checkpoint = split_run(str(run))
    return Predictor(*load_detector(open_run(workdir, checkpoint)))


def read_image(path: str | Path) -> np.ndarray:
    """Decodes an image file as a viewer shows it: uint8 [H, W, 3] RGB, turned by its EXIF tag.

    Raises:
        UserError: the file is missing or cannot be decoded.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no image {path}")
    try:
        encoded = Path(path).read_bytes()
        return decode_image(encoded, read_header(encoded).orientation)
    except ValueError as error:
        raise UserError(f"{path} cannot be decoded as an image: {error}") from None
