"""Photos with annotations in the layouts and by the names of docs/own-data.md."""

import json
import shutil

import cv2
import numpy as np

CLASSES = ("Platelets", "RBC", "WBC")


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


def write_photos(place):
    """Writes BCCD, cells, coco and yolo: the same 16 pictures of 128 × 96 pixels."""
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
