"""What is written: result files as the results come, pictures, and annotated videos."""

import contextlib
import csv
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import cv2
import numpy as np

from scratchdet_jax.data.images import fit_to_canvas
from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation import formats
from scratchdet_jax.evaluation.drawing import save_png
from scratchdet_jax.files import write_atomically, writing
from scratchdet_jax.predictor import Detections
from scratchdet_jax.progress import map_ahead
from scratchdet_jax.tools.predict.inputs import Item

FORMATS = ("coco", "csv", "voc")
GRID_LIMIT = 16  # images; with more there is no grid
_CELL = 1024  # longest side in pixels of a picture in the grid
_INSTEAD = "choose another folder with --output"


class Results:
    """Writes the detections of one image after another; after `add`, they are in the files."""

    def __init__(self, files: Sequence[Path], class_names: Sequence[str], mark: str) -> None:
        """Begins the files of `result_files`; `mark` begins COCO's."""
        self._files, self._class_names = files, class_names
        for file in files:
            with _opened(file, "w"):
                pass

    def add(self, item: Item, found: Detections) -> None:
        """Writes the detections of an image."""
        raise NotImplementedError

    def close(self) -> None:
        """Completes the files."""


def result_files(kind: str, output: Path, class_names: Sequence[str], split: str) -> list[Path]:
    """Returns the files of a format, one of FORMATS, in the folder `output`.

    `split` is a part of the names of VOC's files.
    """
    if kind == "voc":
        return [formats.voc_file(output, split, name) for name in class_names]
    if kind == "csv":
        return [output / "detections.csv"]
    return [output / "detections.json", output / "detections.jsonl"]


def open_results(
    kind: str, files: Sequence[Path], class_names: Sequence[str], mark: str
) -> Results:
    """Begins the result files of a format; their folder exists."""
    writers: dict[str, type[Results]] = {"coco": _Coco, "csv": _Csv, "voc": _Voc}
    return writers[kind](files, class_names, mark)


class _Coco(Results):
    """COCO's format: images, categories, and the detections as annotations with a score.

    Until it is complete, the results are lines of JSON in a file of their own, one an image: images
    and annotations are two lists of one file, and both grow.
    """

    def __init__(self, files: Sequence[Path], class_names: Sequence[str], mark: str) -> None:
        self._path, self._lines = files
        super().__init__([self._lines], class_names, mark)
        ids = formats.category_ids(class_names)
        categories = [{"id": i, "name": name} for i, name in zip(ids, class_names, strict=True)]
        self._head = json.dumps({"info": {"software": mark}, "categories": categories})
        self._images = 0
        self._write(self._head)

    def add(self, item: Item, found: Detections) -> None:
        self._images += 1
        height, width = found.size
        image = {"id": self._images, "file_name": item.name, "width": width, "height": height}
        self._write(json.dumps({**image, "detections": found.to_coco(self._images)}))

    def close(self) -> None:
        with writing(str(self._path), _INSTEAD):
            write_atomically(self._path, lambda file: file.writelines(map(str.encode, self._all())))
            self._lines.unlink()

    def _write(self, line: str) -> None:
        with _opened(self._lines, "a") as file:
            file.write(line + "\n")

    def _all(self) -> Iterator[str]:
        """Yields the complete file in pieces, from the lines."""
        yield self._head.removesuffix("}")
        for name in ("images", "annotations"):
            yield f',\n"{name}": ['
            for number, entry in enumerate(self._entries(name)):
                yield f"{',' if number else ''}\n{json.dumps(entry)}"
            yield "]"
        yield "}\n"

    def _entries(self, name: str) -> Iterator[dict[str, Any]]:
        """Yields the images, or the detections with what pycocotools expects of annotations."""
        number = itertools.count(1)
        with self._lines.open(encoding="utf-8") as file:
            next(file)
            for image in map(json.loads, file):
                detections = image.pop("detections")
                if name == "images":
                    yield image
                    continue
                for entry in detections:
                    area = round(entry["bbox"][2] * entry["bbox"][3], 3)
                    yield {"id": next(number), **entry, "area": area, "iscrowd": 0}


class _Csv(Results):
    """One row per detection; an image without any has none."""

    def __init__(self, files: Sequence[Path], class_names: Sequence[str], mark: str) -> None:
        super().__init__(files, class_names, mark)
        self._write([("image", "class", "score", "xmin", "ymin", "xmax", "ymax")])

    def add(self, item: Item, found: Detections) -> None:
        self._write(
            [item.name, name, f"{score:.9g}", *(f"{value:.3f}" for value in box)]
            for box, name, score in zip(found.boxes, found.names, found.scores, strict=True)
        )

    def _write(self, rows: Any) -> None:
        with _opened(self._files[0], "a") as file:
            csv.writer(file).writerows(rows)


class _Voc(Results):
    """The devkit's files, one a class; a class without detections has an empty one."""

    def add(self, item: Item, found: Detections) -> None:
        for name, lines in found.to_voc(" ".join(item.voc_id.split())).items():
            with _opened(self._files[self._class_names.index(name)], "a") as file:
                file.writelines(line + "\n" for line in lines)


@contextlib.contextmanager
def _opened(path: Path, mode: str) -> Iterator[IO[str]]:
    """Opens a text file; names of images that are not UTF-8 keep their bytes."""
    with (
        writing(str(path), _INSTEAD),
        path.open(mode, encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield file


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
            with writing(str(path), _INSTEAD):
                part.replace(path)
    finally:
        if writer is not None:
            writer.release()
        part.unlink(missing_ok=True)
