"""Pictures of the detections: PNG files, annotated videos, and all of a few in one grid."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from scratchdet_jax.data.images import fit_to_canvas
from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation.drawing import save_png
from scratchdet_jax.files import writing
from scratchdet_jax.predictor import Detections, map_ahead
from scratchdet_jax.tools.predict.inputs import Item

GRID_LIMIT = 16  # images; with more there is no grid
_CELL = 1024  # longest side in pixels of a picture in the grid


class Drawn(NamedTuple):
    """An image, what was found in it, and its picture.

    Attributes:
        item: the image.
        found: its detections, or why there are none.
        picture: uint8 [H, W, 3] RGB: a frame of an annotated video, or a cell of the grid; None if
            neither needs it.
    """

    item: Item
    found: Detections | UserError
    picture: np.ndarray | None = None


def drawn(
    found: Iterable[Drawn], output: Path, software: str, *, frames: bool, cells: bool
) -> Iterator[Drawn]:
    """Draws on threads, in order, and writes the PNG files.

    `frames`: write the frames of videos as PNG files; `cells`: keep a small copy for the grid.
    """

    def draw(one: Drawn) -> Drawn:
        if isinstance(one.found, UserError):
            return one
        try:
            picture = one.found.draw(ground_truth=one.item.truth)
        except UserError as error:  # the file has changed, or only a part of it can be decoded
            return one._replace(found=error)
        if one.item.video and not frames:
            return one._replace(picture=picture)
        save_png(output / f"{one.item.stem}.png", picture, software)
        return one._replace(picture=fit_to_canvas(picture, (_CELL, _CELL)) if cells else None)

    return map_ahead(draw, found)


@contextlib.contextmanager
def video_writer(path: Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Returns a function that appends an RGB frame to an MP4 file, which is there once complete.

    Raises:
        UserError: the video cannot be written.
    """
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    writer: cv2.VideoWriter | None = None

    def write(picture: np.ndarray) -> None:
        nonlocal writer
        if writer is None:
            size = (picture.shape[1], picture.shape[0])
            code = cv2.VideoWriter.fourcc(*"mp4v")
            writer = cv2.VideoWriter(str(part), cv2.CAP_FFMPEG, code, rate, size)
            if not writer.isOpened():
                raise UserError(
                    f"{path} cannot be written: choose another folder with --output, or --frames"
                )
        writer.write(np.ascontiguousarray(picture[..., ::-1]))

    try:
        yield write
        if writer is not None:
            writer.release()
            with writing(str(path), "choose another folder with --output"):
                part.replace(path)
    finally:
        if writer is not None:
            writer.release()
        part.unlink(missing_ok=True)
