"""Every command of docs/own-data.md runs, on a small data set with the same names."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
CLASSES = ("Platelets", "RBC", "WBC")
# What makes a run of the page small; later overrides of the same field count.
SMALL = (
    "--config.image_size=64 --config.train_images=8 --config.batch_size=4 "
    "--config.eval.batch_size=4 --config.model.width=0.0625"
)
# As written, and as it runs without an installed package.
PROGRAMS = {"python": sys.executable, "scratchdet": f"{sys.executable} -m scratchdet_jax.tools"}


def commands():
    """The commands of the page, in order; those that need TensorFlow are left out."""
    text = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(("python ", "scratchdet "))]


def draw(path, rng):
    """A picture of 128 × 96 pixels with one box of each class; returns the boxes."""
    image = rng.integers(0, 80, (96, 128, 3), np.uint8)
    boxes = []
    for column, colour in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255))):
        x, y = 4 + 42 * column + int(rng.integers(6)), int(rng.integers(4, 60))
        cv2.rectangle(image, (x, y), (x + 30, y + 28), colour, -1)
        boxes.append((x, y, x + 30, y + 28))
    cv2.imwrite(str(path), image)
    return boxes


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory like the page's: BCCD, cells, coco and yolo, and the program."""
    place = tmp_path_factory.mktemp("page")
    rng = np.random.default_rng(0)
    for folder in ("BCCD/JPEGImages", "BCCD/Annotations", "BCCD/ImageSets/Main", "cells", "coco"):
        (place / folder).mkdir(parents=True)
    for folder in ("yolo/images", "yolo/labels"):
        (place / folder).mkdir(parents=True)
    names = [f"BloodImage_{i:05d}" for i in range(16)]
    coco = {"images": [], "annotations": [], "categories": []}
    coco["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    for number, name in enumerate(names):
        picture = place / f"BCCD/JPEGImages/{name}.jpg"
        boxes = draw(picture, rng)
        objects = "".join(
            f"<object><name>{c}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
            f"<ymax>{y1}</ymax></bndbox></object>"
            for c, (x0, y0, x1, y1) in zip(CLASSES, boxes, strict=True)
        )
        xml = place / f"BCCD/Annotations/{name}.xml"
        xml.write_text(f"<annotation><filename>{name}.jpg</filename>{objects}</annotation>")
        shutil.copy(picture, place / "cells")
        shutil.copy(xml, place / "cells")
        shutil.copy(picture, place / "yolo/images")
        rows = [
            f"{c} {(x0 + x1) / 256} {(y0 + y1) / 192} {(x1 - x0) / 128} {(y1 - y0) / 96}"
            for c, (x0, y0, x1, y1) in enumerate(boxes)
        ]
        (place / f"yolo/labels/{name}.txt").write_text("\n".join(rows))
        coco["images"].append(
            {"id": number, "file_name": f"{name}.jpg", "width": 128, "height": 96}
        )
        coco["annotations"] += [
            {"id": 3 * number + c, "image_id": number, "category_id": c + 1, "area": 840,
             "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0}
            for c, (x0, y0, x1, y1) in enumerate(boxes)
        ]  # fmt: skip
    for split, part in (("train", slice(0, 10)), ("val", slice(10, 16))):
        (place / f"BCCD/ImageSets/Main/{split}.txt").write_text("\n".join(names[part]))
        ids = {image["id"] for image in coco["images"][part]}
        content = coco | {
            "images": coco["images"][part],
            "annotations": [a for a in coco["annotations"] if a["image_id"] in ids],
        }
        (place / f"coco/{split}.json").write_text(json.dumps(content))
    listed = "\n".join(f"  {i}: {name}" for i, name in enumerate(CLASSES))
    (place / "yolo/data.yaml").write_text(f"path: .\ntrain: images\nnames:\n{listed}\n")
    for name in ("configs", "train.py", "eval.py", "scratchdet_jax"):
        (place / name).symlink_to(ROOT / name)
    return place


@pytest.mark.slow  # eight commands that compile
def test_every_command_of_the_page_runs(place):
    lines = commands()
    assert len(lines) >= 10
    for line in lines:
        small = f" {SMALL}" if "train.py" in line else ""
        program, _, arguments = line.partition(" ")
        result = subprocess.run(
            ["bash", "-c", f"{PROGRAMS[program]} {arguments}{small}"],
            cwd=place,
            env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"
    assert (place / "pictures" / "detections.json").exists()
    assert (place / "runs/bccd/coco/coco_results.json").exists()
