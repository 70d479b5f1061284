"""Result files, written as the results come: COCO JSON, CSV, VOC text."""

import contextlib
import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation import formats
from scratchdet_jax.files import write_atomically
from scratchdet_jax.predictor import Detections
from scratchdet_jax.tools.predict.inputs import Item

FORMATS = ("coco", "csv", "voc")
_COLUMNS = ("image", "class", "score", "xmin", "ymin", "xmax", "ymax")
_JSON, _LINES, _CSV = "detections.json", "detections.jsonl", "detections.csv"


class Results(Protocol):
    """Writes the detections of one image after another to a folder."""

    def add(self, item: Item, found: Detections) -> None:
        """Writes the detections of an image; they are in the file when this returns."""

    def close(self) -> None:
        """Completes the files."""


def result_files(kind: str, output: Path, class_names: Sequence[str], split: str) -> list[Path]:
    """The files that `open_results` would write to `output`, the main one first."""
    if kind == "coco":
        return [output / _JSON, output / _LINES]
    if kind == "csv":
        return [output / _CSV]
    return [formats.voc_file(output, split, name) for name in class_names]


def open_results(
    kind: str, output: Path, class_names: Sequence[str], split: str, mark: str
) -> Results:
    """Begins the result files of a format, one of FORMATS.

    Args:
        kind: the format.
        output: an existing folder.
        class_names: [C]; label i is class_names[i − 1].
        split: part of the names of VOC's files.
        mark: begins COCO's files.
    """
    files = result_files(kind, output, class_names, split)
    if kind == "coco":
        return _Coco(files[0], files[1], class_names, mark)
    return _Csv(files[0]) if kind == "csv" else _Voc(dict(zip(class_names, files, strict=True)))


def _head(mark: str) -> str:
    """How COCO's files begin, up to the mark."""
    return '{"info": {"software": ' + json.dumps(mark) + "}"


class _Coco:
    """COCO's format: images, categories, and the detections as annotations with a score.

    Until it is complete, the results are lines of JSON in a file of their own, one an image: images
    and annotations are two lists of one file, and both grow.
    """

    def __init__(self, path: Path, lines: Path, class_names: Sequence[str], mark: str) -> None:
        self._path, self._lines_path, self._mark = path, lines, mark
        ids = formats.category_ids(class_names)
        self._categories = [
            {"id": number, "name": name} for number, name in zip(ids, class_names, strict=True)
        ]
        with _writing(lines):
            self._file = lines.open("w", encoding="utf-8")
        self._images = 0
        self._write(f'{_head(mark)}, "categories": {json.dumps(self._categories)}}}')

    def add(self, item: Item, found: Detections) -> None:
        self._images += 1
        height, width = found.size
        image = {"id": self._images, "file_name": item.name, "width": width, "height": height}
        self._write(json.dumps({**image, "detections": found.to_coco(self._images)}))

    def close(self) -> None:
        with _writing(self._path):
            self._file.close()
            write_atomically(self._path, self._write_all)
            self._lines_path.unlink()

    def _write(self, line: str) -> None:
        with _writing(self._lines_path):
            self._file.write(line + "\n")
            self._file.flush()

    def _write_all(self, file: BinaryIO) -> None:
        file.write(f'{_head(self._mark)},\n"categories": '.encode())
        file.write(json.dumps(self._categories).encode() + b',\n"images": [')
        _write_list(file, ({k: v for k, v in i.items() if k != "detections"} for i in self._read()))
        file.write(b'],\n"annotations": [')
        _write_list(file, self._annotations())
        file.write(b"]}\n")

    def _annotations(self) -> Iterator[dict[str, Any]]:
        """The detections, with what pycocotools expects of annotations."""
        number = 0
        for image in self._read():
            for entry in image["detections"]:
                number += 1
                area = round(entry["bbox"][2] * entry["bbox"][3], 3)
                yield {"id": number, **entry, "area": area, "iscrowd": 0}

    def _read(self) -> Iterator[dict[str, Any]]:
        with self._lines_path.open(encoding="utf-8") as file:
            next(file)
            yield from map(json.loads, file)


def _write_list(file: BinaryIO, entries: Iterator[dict[str, Any]]) -> None:
    separator = "\n"
    for entry in entries:
        file.write((separator + json.dumps(entry)).encode())
        separator = ",\n"


class _Csv:
    """One row per detection; an image without any has none."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, _new_file(path)
        self._writer = csv.writer(self._file)
        self._write([_COLUMNS])

    def add(self, item: Item, found: Detections) -> None:
        self._write(
            [item.name, name, f"{score:.9g}", *(f"{value:.3f}" for value in box)]
            for box, name, score in zip(found.boxes, found.names, found.scores, strict=True)
        )

    def close(self) -> None:
        self._file.close()

    def _write(self, rows: Any) -> None:
        with _writing(self._path):
            self._writer.writerows(rows)
            self._file.flush()


class _Voc:
    """The devkit's files, one a class; a class without detections has an empty one."""

    def __init__(self, paths: dict[str, Path]) -> None:
        self._paths = paths
        for path in paths.values():
            _new_file(path).close()

    def add(self, item: Item, found: Detections) -> None:
        for name, lines in found.to_voc(" ".join(item.voc_id.split())).items():
            with _writing(self._paths[name]), _open(self._paths[name], "a") as file:
                file.writelines(line + "\n" for line in lines)

    def close(self) -> None:
        pass


def _new_file(path: Path) -> Any:
    with _writing(path):
        return _open(path, "w")


def _open(path: Path, mode: str) -> Any:
    # Names of files that are not UTF-8 keep their bytes.
    return path.open(mode, encoding="utf-8", errors="surrogateescape", newline="")


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """An OSError inside becomes a UserError about the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno or 0)
        raise UserError(
            f"{path} cannot be written ({reason}): choose another folder with --output"
        ) from None
