"""What the scripts of the other projects share; found because it lies beside them."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def parse(description: str, models: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line: model, data, minutes, threads, seed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", choices=models, help="name of a network")
    parser.add_argument("--data", required=True, type=Path, help="folder of the prepared data set")
    parser.add_argument("--minutes", type=float, default=20, help="training time (default 20)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def coco_results(
    image_id: Any,
    boxes: Sequence[Sequence[float]],
    scores: Sequence[float],
    category_ids: Sequence[int],
) -> list[dict[str, Any]]:
    """Writes an image's detections in COCO's format; takes (xmin, ymin, xmax, ymax) in pixels."""
    return [
        {
            "image_id": image_id,
            "category_id": category_id,
            "bbox": [left, top, right - left, bottom - top],
            "score": score,
        }
        for (left, top, right, bottom), score, category_id in zip(
            boxes, scores, category_ids, strict=True
        )
    ]


def write(folder: Path, name: str, content: Any) -> None:
    """Writes a JSON file into the folder of a detector."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content, indent=1) + "\n")
