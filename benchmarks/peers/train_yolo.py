"""Trains a YOLO of Ultralytics from random weights for a given time, and scores nothing.

python benchmarks/peers/train_yolo.py yolo11n --data=FOLDER --minutes=20

FOLDER comes from benchmarks.peers.prepare. Writes FOLDER/MODEL/detections.json (COCO's results
format, of the split val) and FOLDER/MODEL/summary.json. All settings are Ultralytics' defaults
but the image size of 320.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
import ultralytics
from common import coco_results, parse, write
from ultralytics import YOLO
from ultralytics.utils import torch_utils

IMAGE_SIZE = 320


def detect(model: YOLO, data: Path) -> list[dict[str, Any]]:
    """Returns the detections of all images of val as COCO's results."""
    results = []
    for image in json.loads((data / "val.json").read_text())["images"]:
        (found,) = model.predict(
            data / "images/val" / image["file_name"],
            imgsz=IMAGE_SIZE,
            conf=0.001,  # as in Ultralytics' own validation
            iou=0.7,
            verbose=False,
            device="cpu",
        )
        labels = [int(label) + 1 for label in found.boxes.cls.tolist()]
        boxes, scores = found.boxes.xyxy.tolist(), found.boxes.conf.tolist()
        results += coco_results(image["id"], boxes, scores, labels)
    return results


def main() -> None:
    """Parses the command line, trains and detects."""
    options = parse(__doc__.splitlines()[0])
    torch_utils.NUM_THREADS = options.threads  # Ultralytics leaves one core unused
    output = options.data / options.model
    images = len(json.loads((options.data / "train.json").read_text())["images"])
    model = YOLO(f"{options.model}.yaml")  # no weights
    batches = 0

    def count(trainer: Any) -> None:
        nonlocal batches
        batches += 1

    model.add_callback("on_train_batch_start", count)
    model.train(
        data=options.data / "data.yaml",
        time=options.minutes / 60,
        imgsz=IMAGE_SIZE,
        device="cpu",
        seed=options.seed,
        workers=0,
        val=False,
        plots=False,
        project=str(options.data.resolve()),
        name=f"{options.model}/run",
    )
    summary = {
        "model": options.model,
        "parameters": sum(values.numel() for values in model.model.parameters()),
        "torch": torch.__version__,
        "ultralytics": ultralytics.__version__,
        "images": round(batches * images / math.ceil(images / model.trainer.batch_size)),
        "threads": torch.get_num_threads(),
        "minutes": options.minutes,
    }
    write(output, "summary.json", summary)
    print(json.dumps(summary, indent=2), flush=True)
    write(output, "detections.json", detect(YOLO(model.trainer.last), options.data))


if __name__ == "__main__":
    main()
