"""Writes a prepared data set as COCO's JSON and in YOLO's layout, for detectors of other projects.

python -m benchmarks.peers.prepare voc_folder/bccd --output=FOLDER

For the splits train and val, FOLDER gets SPLIT.json, images/SPLIT and labels/SPLIT, and data.yaml.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from scratchdet_jax import cli
from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.errors import UserError
from scratchdet_jax.files import writable_folder

SPLITS = ("train", "val")


def write_split(source: DetectionSource, split: str, folder: Path) -> None:
    """Writes the images of a split and its boxes in both formats; box positions are not rounded.

    Raises:
        UserError: an image is turned by EXIF or has a box that scoring ignores, which the formats
            treat differently.
    """
    images, labels = folder / "images" / split, folder / "labels" / split
    for made in (images, labels):
        made.mkdir(parents=True)
    listed, annotations = [], []
    for index in range(len(source)):
        example = source[index]
        name = Path(example["filename"]).name
        if example["orientation"] != 1 or example["ignore"].any():
            raise UserError(
                f"{source.describe(index)} ({name}) is turned by EXIF or has a difficult or crowd "
                "box: prepare a data set without them"
            )
        (images / name).write_bytes(example["image"])
        encoded = np.frombuffer(example["image"], np.uint8)
        height, width = cv2.imdecode(encoded, cv2.IMREAD_COLOR).shape[:2]
        entry = {"id": example["image_id"], "file_name": name, "width": width, "height": height}
        listed.append(entry)
        lines = []
        for (top, left, bottom, right), label in zip(
            example["boxes"].tolist(), example["labels"].tolist(), strict=True
        ):
            wide, high = right - left, bottom - top
            box = [left * width, top * height, wide * width, high * height]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": example["image_id"],
                    "category_id": label,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
            lines.append(f"{label - 1} {left + wide / 2} {top + high / 2} {wide} {high}\n")
        (labels / name).with_suffix(".txt").write_text("".join(lines))
    categories = [{"id": i, "name": name} for i, name in enumerate(source.class_names, start=1)]
    content = {"images": listed, "annotations": annotations, "categories": categories}
    (folder / f"{split}.json").write_text(json.dumps(content))


def write_yolo_data(folder: Path, class_names: Sequence[str]) -> None:
    """Writes data.yaml; JSON is YAML."""
    content = {"path": str(folder.resolve()), "names": list(class_names)}
    content |= {split: f"images/{split}" for split in SPLITS}
    (folder / "data.yaml").write_text(json.dumps(content, indent=2) + "\n")


def parser(program: str) -> argparse.ArgumentParser:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="a prepared data set, such as voc_folder/bccd")
    parser.add_argument("--data_dir", default="data", help="folder of the prepared data sets")
    parser.add_argument("--output", required=True, help="folder to make")
    return parser


def main(argv: Sequence[str]) -> None:
    """Parses the command line and writes both splits."""
    options = parser(argv[0]).parse_args(argv[1:])
    folder = writable_folder(Path(options.output), "--output")
    for split in SPLITS:
        source = DetectionSource(f"{options.dataset}:{split}", options.data_dir)
        write_split(source, split, folder)
        print(f"{split}: {len(source)} images")
    write_yolo_data(folder, source.class_names)


if __name__ == "__main__":
    cli.run(main)
