"""Draws a trained detector's detections on photos or on the first images of its eval split.

python -m scratchdet_jax.tools.predict --workdir=runs/voc300 --output=pictures a.jpg b.jpg

It replaces only pictures and detections.json that it wrote itself for the same workdir, never an
image or another file.
"""

import argparse
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from scratchdet_jax import cli
from scratchdet_jax.data.images import decode_image
from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.data.sources import open_split
from scratchdet_jax.data.untrusted import IMAGE_SUFFIXES
from scratchdet_jax.errors import UserError, plural, writable_folder
from scratchdet_jax.evaluation.detections import ImageDetections, ImageGroundTruth
from scratchdet_jax.evaluation.drawing import draw_detections, grid, save_png, was_saved_by
from scratchdet_jax.files import write_text_atomically
from scratchdet_jax.predictor import Predictor, read_image
from scratchdet_jax.run.open import load_detector, open_run

_RECORDS, _GRID = "detections.json", "grid"


def main(argv: Sequence[str]) -> None:
    """Parses the command line, detects objects and draws them."""
    options = _parse(argv)
    run = open_run(Path(options.workdir), options.checkpoint)
    source = None if options.images else open_split(run.info.config.data, "eval")
    names = _names(options, source)
    software = _software(run.workdir)
    pictures = _picture_files(names, Path(options.output))
    _check_output(options, pictures, software)
    predict = Predictor(*load_detector(run))
    output = writable_folder(Path(options.output), "--output")
    classes = predict.class_names

    results: list[ImageDetections] = []
    for name, (image, _) in zip(names, _images(options, source), strict=True):
        found = predict(image)
        shown = found.scores >= options.threshold
        results.append(ImageDetections(*(values[shown] for values in found)))
        print(f"{name}: {plural(int(shown.sum()), 'detection')}")
    records = {
        name: [
            {"class": classes[label - 1], "score": float(score), "box_yxyx": box.round(1).tolist()}
            for box, label, score in zip(*_box_label_score(found), strict=True)
        ]
        for name, found in zip(names, results, strict=True)
    }
    write_text_atomically(output / _RECORDS, json.dumps(records, indent=2) + "\n")
    drawn = []
    for file, found, (image, truth) in zip(
        pictures, results, _images(options, source), strict=True
    ):
        drawn.append(draw_detections(image, *_box_label_score(found), classes, ground_truth=truth))
        save_png(file, drawn[-1], software)
    save_png(output / f"{_GRID}.png", grid(drawn, options.columns), software)
    print(f"{plural(len(drawn), 'picture')}, {_GRID}.png and {_RECORDS} in {output}")


def _names(options: argparse.Namespace, source: DetectionSource | None) -> list[str]:
    """The paths of the photos as given, or the ids of the split's first images."""
    if source is None:
        return options.images
    return [source.image_id(i) for i in range(min(options.count, len(source)))]


def _picture_files(names: Sequence[str], output: Path) -> list[Path]:
    """The file of each picture: the image's name, numbered if another file has the same.

    Upper and lower case count as the same name, as they do on some file systems.
    """
    taken, files = {_GRID}, []
    for name in names:
        path = Path(name)  # or an id, of which .v2 is no suffix
        stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
        numbered = (f"{stem}-{number}" for number in itertools.count(2))
        free = next(s for s in itertools.chain([stem], numbered) if s.lower() not in taken)
        taken.add(free.lower())
        files.append(output / f"{free}.png")
    return files


def _software(workdir: Path) -> str:
    """How the pictures of this run are marked, so that only they are replaced."""
    return f"scratchdet predict {hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:16]}"


def _check_output(options: argparse.Namespace, pictures: Sequence[Path], software: str) -> None:
    """Makes sure that no input and no file of anybody else would be replaced.

    Raises:
        UserError: a file that would be written is an image to detect on, or exists and was not
            written by this command with the same workdir.
    """
    output = Path(options.output)
    inputs = [Path(image) for image in options.images if Path(image).exists()]
    files = (*pictures, output / f"{_GRID}.png", output / _RECORDS)
    for file in files:
        if not os.path.lexists(file):
            continue
        if file.exists() and any(file.samefile(image) for image in inputs):
            raise UserError(
                f"{file} is one of the images and would be replaced: choose another folder with "
                "--output"
            )
        if file.name == _RECORDS:
            ours = _is_record(file, files[:-1], software)
        else:
            ours = was_saved_by(file, software)
        if file.is_symlink() or not ours:
            raise UserError(
                f"{file} exists and was not written by this command for {options.workdir}: choose "
                "another folder with --output, or remove the file"
            )


def _is_record(file: Path, pictures: Sequence[Path], software: str) -> bool:
    """Whether a file is a detections.json of this command.

    Without any detection, it is recognised by the pictures beside it.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        found = [detection for image in record.values() for detection in image]
        if not all(set(detection) == {"class", "score", "box_yxyx"} for detection in found):
            return False
    except (OSError, ValueError, AttributeError, TypeError):
        return False
    return bool(found) or any(was_saved_by(picture, software) for picture in pictures)


def _box_label_score(found: ImageDetections) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return found.boxes_pixels, found.labels, found.scores


def _images(
    options: argparse.Namespace, source: DetectionSource | None
) -> Iterator[tuple[np.ndarray, ImageGroundTruth | None]]:
    """Yields pixels and, for images of the split, ground truth."""
    if source is None:
        for path in options.images:
            yield read_image(path), None
        return
    for i in range(min(options.count, len(source))):
        example = source[i]
        image = decode_image(example["image"], example["orientation"])
        scale = np.tile(np.asarray(image.shape[:2], np.float64), 2)
        truth = ImageGroundTruth(example["boxes"] * scale, example["labels"], example["ignore"])
        yield image, truth


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=argv[0], description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="*", help="image files; default: images of the eval split")
    parser.add_argument("--workdir", required=True, help="folder of the run, as for train.py")
    parser.add_argument("--output", required=True, help="folder for the pictures")
    parser.add_argument("--checkpoint", default="best", help="best, latest or a step")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score that is drawn")
    parser.add_argument("--count", type=_positive, default=8, help="number of eval images")
    parser.add_argument("--columns", type=_positive, default=4, help="columns of the grid")
    options = parser.parse_args(argv[1:])
    options.images = list(dict.fromkeys(options.images))
    return options


if __name__ == "__main__":
    cli.run(main)
