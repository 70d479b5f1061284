"""Trains a YOLO of Ultralytics from random weights for a given time, and scores nothing.

python benchmarks/peers/train_yolo.py yolo11n --data=FOLDER --minutes=20

FOLDER comes from benchmarks.peers.prepare. Writes FOLDER/MODEL/detections.json (COCO's results
format, of the split val) and FOLDER/MODEL/summary.json. All settings are Ultralytics' defaults
but the image size of 320.
"""

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")  # Ultralytics would set 1

import torch
import ultralytics
from ultralytics import YOLO

IMAGE_SIZE = 320


def detect(model: YOLO, data: Path) -> list[dict[str, Any]]:
    """The detections of all images of val as COCO's results."""
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
        for (left, top, right, bottom), score, label in zip(
            found.boxes.xyxy.tolist(),
            found.boxes.conf.tolist(),
            found.boxes.cls.tolist(),
            strict=True,
        ):
            results.append(
                {
                    "image_id": image["id"],
                    "category_id": int(label) + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "score": score,
                }
            )
    return results


def main() -> None:
    """Parses the command line, trains and detects."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="the name of a network, such as yolo11n")
    parser.add_argument("--data", required=True, type=Path, help="folder of the prepared data set")
    parser.add_argument("--minutes", type=float, default=20, help="training time (default 20)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
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
    output.mkdir(exist_ok=True)
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary, indent=2), flush=True)
    trained = YOLO(model.trainer.last)
    (output / "detections.json").write_text(json.dumps(detect(trained, options.data)))


if __name__ == "__main__":
    main()
