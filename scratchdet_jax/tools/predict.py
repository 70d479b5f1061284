"""Draws a trained detector's detections on photos or on the first images of its eval split.

python -m scratchdet_jax.tools.predict --workdir=runs/voc300 --output=pictures a.jpg b.jpg
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from scratchdet_jax import cli
from scratchdet_jax.data.images import decode_image
from scratchdet_jax.data.sources import open_split
from scratchdet_jax.errors import writable_folder
from scratchdet_jax.evaluation.detections import ImageDetections, ImageGroundTruth
from scratchdet_jax.predictor import Predictor, read_image
from scratchdet_jax.run.open import load_detector, open_run
from scratchdet_jax.tools.drawing import draw_detections, grid, save_png


def main(argv: Sequence[str]) -> None:
    """Parses the command line, detects objects and draws them."""
    options = _parse(argv)
    run = open_run(Path(options.workdir), options.checkpoint)
    config = run.info.config
    predict = Predictor(*load_detector(run))
    output = writable_folder(Path(options.output), "--output")
    names = predict.class_names

    pictures, records = [], {}
    for name, image, truth in _images(options, config):
        found = predict(image)
        shown = found.scores >= options.threshold
        found = ImageDetections(*(values[shown] for values in found))
        picture = draw_detections(image, *_box_label_score(found), names, ground_truth=truth)
        save_png(output / f"{_stem(name, records)}.png", picture)
        pictures.append(picture)
        records[name] = [
            {"class": names[label - 1], "score": float(score), "box_yxyx": box.round(1).tolist()}
            for box, label, score in zip(*_box_label_score(found), strict=True)
        ]
        print(f"{name}: {len(found.labels)} detections")
    save_png(output / "grid.png", grid(pictures, options.columns))
    (output / "detections.json").write_text(json.dumps(records, indent=2) + "\n")
    print(f"{len(pictures)} pictures, grid.png and detections.json in {output}")


def _stem(name: str, taken: dict[str, Any]) -> str:
    """Returns the picture's file name: the image's, numbered if another image has the same."""
    stem = Path(name).stem
    same = sum(Path(other).stem == stem for other in taken) + (stem == "grid")
    return f"{stem}-{same + 1}" if same else stem


def _box_label_score(found: ImageDetections) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return found.boxes_pixels, found.labels, found.scores


def _images(
    options: argparse.Namespace, config: ml_collections.ConfigDict
) -> Iterator[tuple[str, np.ndarray, ImageGroundTruth | None]]:
    """Yields name, pixels and, for images of the split, ground truth."""
    for path in options.images:
        yield path, read_image(path), None
    if not options.images:
        source = open_split(config.data, "eval")
        for i in range(min(options.count, len(source))):
            example = source[i]
            image = decode_image(example["image"], example["orientation"])
            scale = np.tile(np.asarray(image.shape[:2], np.float64), 2)
            truth = ImageGroundTruth(example["boxes"] * scale, example["labels"], example["ignore"])
            yield source.image_id(i), image, truth


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
    return parser.parse_args(argv[1:])


if __name__ == "__main__":
    cli.run(main)
