"""Images in, detections out: how the commands and the Python interface detect."""

import dataclasses
import itertools
import os
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import jax.export
import numpy as np

from scratchdet_jax.config.scales import Scale
from scratchdet_jax.data.images import decode_to_canvas, fit_to_canvas, read_header
from scratchdet_jax.errors import UserError, one_line
from scratchdet_jax.evaluation import formats
from scratchdet_jax.evaluation.detections import (
    ImageDetections,
    ImageGroundTruth,
    to_image_detections,
)
from scratchdet_jax.evaluation.drawing import draw_detections
from scratchdet_jax.evaluation.multiscale import make_scale_step
from scratchdet_jax.ops import nms
from scratchdet_jax.paths import local_path
from scratchdet_jax.progress import map_ahead
from scratchdet_jax.run.exported import ExportedRun
from scratchdet_jax.run.open import SavedRun, load_detector, open_trained, split_run

THRESHOLD = 0.5  # lowest score that is returned, unless the call says otherwise
BATCH_SIZE = 8
_UNREDUCED = (sys.maxsize, sys.maxsize)  # a canvas that every image fits
_SHOWN = 1024  # longest side in pixels of the picture in a notebook

Threshold = float | Mapping[str, float] | Sequence[float]
# (images uint8 [B, H, W, 3], sizes int32 [B, 2]) → detections [B, K], boxes normalised.
DetectFunction = Callable[[np.ndarray, np.ndarray], nms.Detections[jax.Array]]


class EncodedImage(NamedTuple):
    """The content of an image file.

    Attributes:
        name: the image in messages.
        content: the bytes of the file.
        orientation: the turn to make, 1…8 as in EXIF; the file's own tag is ignored.
    """

    name: str
    content: bytes
    orientation: int


Image = np.ndarray | str | os.PathLike[str] | EncodedImage
# An image as it was given, reduced to the canvas, and its full size (height, width).
Loaded = tuple[Image, np.ndarray, tuple[int, int]]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The n objects found in one image, by descending score.

    Attributes:
        boxes: float64 [n, 4], (xmin, ymin, xmax, ymax) in pixels of the image, from its top left
            corner; inside the image.
        scores: float32 [n], in (0, 1].
        labels: int32 [n], 1…C.
        size: (height, width) of the image in pixels, as displayed.
        class_names: [C]; label i is class_names[i − 1].
        source: the image as it was given.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    size: tuple[int, int]
    class_names: tuple[str, ...]
    source: Image

    @property
    def names(self) -> list[str]:
        """Returns the class name of each object, [n]."""
        return [self.class_names[label - 1] for label in self.labels]

    def draw(self, *, ground_truth: ImageGroundTruth | None = None) -> np.ndarray:
        """Draws boxes, names and scores on a copy of the image; a file is read again.

        An image whose longer side is below 384 pixels is enlarged, so that the text is legible.

        Args:
            ground_truth: boxes to draw dashed beneath.

        Returns:
            uint8 [H', W', 3], RGB.

        Raises:
            UserError: the file cannot be read any more.
        """
        image, _ = _read(self.source, _UNREDUCED)
        boxes, scores, labels = self._found()
        return draw_detections(
            image, boxes, labels, scores, self.class_names, ground_truth=ground_truth
        )

    def to_coco(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """Returns entries of a COCO results file, which pycocotools' `loadRes` reads.

        Args:
            image_id: the id in the annotation file. By default the name of the image file without
                its suffix; as a number if it is one: 000000000139.jpg is image 139.

        Returns:
            [n] of {"image_id", "category_id", "bbox": [x, y, width, height] in pixels, "score"}.
            The category of a label is the label itself, or COCO's own id if the classes are COCO's.
        """
        if image_id is None:
            image_id = formats.as_number(self._stem())
        categories = formats.category_ids(self.class_names)
        return formats.coco_entries(image_id, self._found(), categories)

    def to_voc(self, image_id: str | None = None) -> dict[str, list[str]]:
        """Returns lines of the VOC devkit's detection files, by class name.

        Args:
            image_id: by default the name of the image file without its suffix.

        Returns:
            For each class that was found, lines "image_id score xmin ymin xmax ymax", in pixels.
        """
        image_id = self._stem() if image_id is None else image_id
        return formats.voc_lines(image_id, self._found(), self.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        height, width = self.size
        where = f" in {name}" if (name := _name(self.source)) else ""
        found = [f"{name} {s:.2f}" for name, s in zip(self.names[:10], self.scores, strict=False)]
        found += ["…"] if len(self) > 10 else []
        listed = f": {', '.join(found)}" if found else ""
        return f"<{len(self)} detections{where}, {width} × {height} pixels{listed}>"

    def _repr_png_(self) -> bytes | None:
        """Encodes the picture that a notebook shows; None if the image file is gone."""
        try:
            picture = fit_to_canvas(self.draw(), (_SHOWN, _SHOWN))
        except UserError:
            return None
        return cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))[1].tobytes()

    def _found(self) -> ImageDetections:
        return ImageDetections(self.boxes[:, [1, 0, 3, 2]], self.scores, self.labels)

    def _stem(self) -> str:
        if isinstance(self.source, np.ndarray):
            raise UserError("the image was given as an array and has no name: pass image_id")
        return Path(_name(self.source)).stem


class Predictor:
    """A trained detector as a function of images. `load` makes one.

    Images are decoded and reduced on threads, batched, and detected on the device, one batch ahead
    of the results. It compiles at the first call with one image, and at the first with several.
    """

    def __init__(
        self,
        function: DetectFunction,
        class_names: Sequence[str],
        canvas: tuple[int, int],
        batch_size: int = BATCH_SIZE,
    ) -> None:
        """Wraps a compiled detector.

        Args:
            function: detects objects in images uint8 [B, H, W, 3] of which the part int32 [B, 2]
                (height, width) at the top left is valid. B is 1 or `batch_size`.
            class_names: names of the labels 1…C.
            canvas: (H, W) in pixels; larger images are reduced to fit.
            batch_size: images in a batch.
        """
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}, but a batch has at least one image")
        self.function, self.batch_size = function, batch_size
        self.class_names = tuple(class_names)
        self.canvas = (canvas[0], canvas[1])

    def __call__(
        self,
        images: Image | Iterable[Image],
        threshold: Threshold = THRESHOLD,
        *,
        return_exceptions: bool = False,
    ) -> Any:
        """Detects objects.

        Args:
            images: an image, a list of images, or an iterator of them. An image is the path of a
                file, turned as its EXIF tag says, or an array uint8 [H, W, 3] in RGB of any size.
            threshold: the lowest score that is returned, in [0, 1]: a number, a sequence of C
                numbers, or a mapping from class names to numbers (0.5 for a class that is not in
                it). Scores below the run's `config.eval.score_threshold` never occur.
            return_exceptions: an image that cannot be read does not end the call: its UserError
                stands in the place of its detections.

        Returns:
            `Detections` for one image; a list of them, in the same order, for a list; for an
            iterator a generator, which holds three batches of images at most. It reads that far
            ahead: for images that arrive slowly, load with batch_size=1.

        Raises:
            UserError: a file is missing or cannot be decoded, an array has another dtype or shape,
                or the threshold does not fit.
        """
        lowest = _thresholds(threshold, self.class_names)
        if isinstance(images, np.ndarray | str | os.PathLike | EncodedImage):
            (one,) = self._stream(iter([images]), 1, lowest)
            return one if return_exceptions else _raised(one)
        if not isinstance(images, Iterable):
            _read(images, self.canvas)  # refuses it
        found = self._stream(iter(images), self.batch_size, lowest)
        if not return_exceptions:
            found = map(_raised, found)
        return (one for one in found) if isinstance(images, Iterator) else list(found)

    def _stream(
        self, images: Iterator[Image], size: int, lowest: np.ndarray
    ) -> Iterator[Detections | UserError]:
        """Yields the result of each image; the next batch runs meanwhile."""
        loaded = map_ahead(lambda image: _loaded(image, self.canvas), images, ahead=size)
        running = None
        while batch := list(itertools.islice(loaded, size)):
            previous, running = running, (batch, self._start(batch, size))
            if previous:
                yield from self._results(*previous, lowest)
            del previous
        if running:
            yield from self._results(*running, lowest)

    def _start(self, batch: list[Loaded | UserError], size: int) -> nms.Detections[jax.Array]:
        """Starts the detection in a batch, filled up with black images."""
        images = np.zeros((size, *self.canvas, 3), np.uint8)
        sizes = np.ones((size, 2), np.int32)
        for row, one in enumerate(batch):
            if not isinstance(one, UserError):
                reduced = one[1]
                height, width = reduced.shape[:2]
                images[row, :height, :width], sizes[row] = reduced, (height, width)
        return self.function(images, sizes)

    def _results(
        self,
        batch: list[Loaded | UserError],
        running: nms.Detections[jax.Array],
        lowest: np.ndarray,
    ) -> Iterator[Detections | UserError]:
        found = jax.device_get(running)
        for row, one in enumerate(batch):
            if isinstance(one, UserError):
                yield one
                continue
            source, _, size = one
            boxes, scores, labels = to_image_detections(found, row, np.asarray(size))
            kept = scores >= lowest[labels - 1]
            boxes = boxes[kept][:, [1, 0, 3, 2]]
            yield Detections(boxes, scores[kept], labels[kept], size, self.class_names, source)


def load(run: str | os.PathLike[str], *, batch_size: int = BATCH_SIZE) -> Predictor:
    """Loads a trained detector.

    Args:
        run: WORKDIR or WORKDIR@CHECKPOINT; CHECKPOINT is "best" (the default), "latest" or a step.
            Or a file of `scratchdet export`.
        batch_size: images that are detected at a time, if a call has several.

    Raises:
        UserError: there is no such run, checkpoint or file, or it cannot be used.
    """
    path, checkpoint = split_run(os.fspath(run))
    return from_run(open_trained(path, checkpoint), batch_size)


def from_run(run: SavedRun | ExportedRun, batch_size: int = BATCH_SIZE) -> Predictor:
    """Loads an opened detector, at the scale it was trained with."""
    if isinstance(run, ExportedRun):
        config = run.info.config
        exported = _exported_function(run, config.data.canvas)
        return Predictor(exported, run.info.class_names, config.data.canvas, batch_size)
    detector, variables = load_detector(run)
    side = detector.config.image_size
    step = jax.jit(make_scale_step(detector, Scale(side, side)))

    def function(images: np.ndarray, sizes: np.ndarray) -> nms.Detections[jax.Array]:
        return step(variables, {"image": images, "size": sizes})

    return Predictor(function, detector.class_names, detector.config.data.canvas, batch_size)


def _exported_function(run: ExportedRun, canvas: tuple[int, int]) -> DetectFunction:
    """Returns the program of an exported file, with its weights."""
    height, width = canvas
    try:
        exported = jax.export.deserialize(bytearray(run.function))
        jax.eval_shape(  # checks the weights and what the program takes
            exported.call,
            run.weights,
            jax.ShapeDtypeStruct((1, height, width, 3), np.uint8),
            jax.ShapeDtypeStruct((1, 2), np.int32),
        )
    except Exception as error:  # another version of JAX may not read it
        written = run.metadata["origin"]["jax"]
        raise UserError(
            f"{run.path} cannot be used by JAX {jax.__version__} ({one_line(error)}): it was "
            f"written with JAX {written}; install that version, or export the run again"
        ) from None
    here = jax.export.default_export_platform()
    if here not in exported.platforms:
        raise UserError(
            f"{run.path} was exported for {', '.join(exported.platforms)}, and this machine runs "
            f"JAX on {here}: choose another device with JAX_PLATFORMS, or export the run for it"
        )
    call, weights = jax.jit(exported.call), jax.device_put(run.weights)

    def function(images: np.ndarray, sizes: np.ndarray) -> nms.Detections[jax.Array]:
        return nms.Detections(**call(weights, images, sizes))

    return function


def _loaded(image: Image, canvas: tuple[int, int]) -> Loaded | UserError:
    """Reads and reduces an image as the evaluation does; a UserError is returned, not raised."""
    try:
        return image, *_read(image, canvas)
    except UserError as error:
        return error


def _read(image: Image, canvas: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns an image uint8 [h, w, 3], reduced to fit the canvas, and its full (height, width).

    Raises:
        UserError: it is missing, cannot be decoded, or is an array of another kind.
    """
    if not isinstance(image, EncodedImage | str | os.PathLike):
        shape = np.shape(image) if isinstance(image, np.ndarray) else ()
        if len(shape) != 3 or shape[2] != 3 or 0 in shape or image.dtype != np.uint8:
            found = f"{getattr(image, 'dtype', type(image).__name__)} {shape}"
            raise UserError(f"an image must be an array uint8 [H, W, 3] in RGB order, not {found}")
        return fit_to_canvas(image, canvas), (image.shape[0], image.shape[1])
    name = _name(image)
    try:
        if not isinstance(image, EncodedImage):
            path = local_path(name)
            if not path.is_file():
                raise UserError(f"there is no image {name}")
            content = path.read_bytes()
            image = EncodedImage(name, content, read_header(content).orientation)
        return decode_to_canvas(image.content, canvas, image.orientation)
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{name} cannot be decoded as an image: {error}") from None


def _name(image: Image) -> str:
    """Returns the name of an image; "" for an array."""
    if isinstance(image, np.ndarray):
        return ""
    return image.name if isinstance(image, EncodedImage) else os.fspath(image)


def _raised(found: Detections | UserError) -> Detections:
    if isinstance(found, UserError):
        raise found
    return found


def _thresholds(threshold: Threshold, class_names: Sequence[str]) -> np.ndarray:
    """Returns the threshold of each class, float32 [C]."""
    if isinstance(threshold, Mapping):
        unknown = [name for name in threshold if name not in class_names]
        if unknown:
            raise UserError(
                f"threshold names the class {unknown[0]!r}, but the classes are "
                f"{reprlib.repr(list(class_names))}"
            )
        threshold = [threshold.get(name, THRESHOLD) for name in class_names]
    try:
        values = np.asarray(threshold, np.float32)
        lowest = np.broadcast_to(values, len(class_names)) if values.ndim == 0 else values
        if lowest.shape != (len(class_names),) or not ((lowest >= 0) & (lowest <= 1)).all():
            raise ValueError
    except (TypeError, ValueError):
        raise UserError(
            f"threshold is {threshold!r}: it must be a number from 0 to 1, {len(class_names)} of "
            "them, one a class, or a mapping from class names to numbers"
        ) from None
    return lowest
