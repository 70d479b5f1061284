"""Trains a detector of torchvision from random weights for a given time, and scores nothing.

python benchmarks/peers/train_torchvision.py ssd300_vgg16 --data=FOLDER --minutes=20

FOLDER comes from benchmarks.peers.prepare. Writes FOLDER/MODEL/detections.json (COCO's results
format, of the split val) and FOLDER/MODEL/summary.json. Augmentation, optimizer and learning rate
are torchvision's reference settings, the rate scaled linearly with the batch size; the schedule
runs over the time instead of epochs.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from common import coco_results, parse, write
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

MEAN_COLOUR = {tv_tensors.Image: (123.0, 117.0, 104.0), "others": 0}


class Recipe(NamedTuple):
    """A row of torchvision's references/detection/README.md.

    Attributes:
        rate: the learning rate of the reference.
        reference_batch: images per update of the reference, over its GPUs.
        decay: weight decay.
        batch: images per update here.
        factor: the learning rate over `rate`, by the share of the time that has passed.
        augmentation: transforms of an image and its boxes.
    """

    rate: float
    reference_batch: int
    decay: float
    batch: int
    factor: Callable[[float], float]
    augmentation: tuple[torch.nn.Module, ...]


RECIPES = {
    "ssd300_vgg16": Recipe(
        0.002,
        32,
        5e-4,
        8,
        lambda done: 1.0 if done < 80 / 120 else 0.1 if done < 110 / 120 else 0.01,
        (
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill=MEAN_COLOUR),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(),
        ),
    ),
    "ssdlite320_mobilenet_v3_large": Recipe(
        0.15,
        192,
        4e-5,
        24,
        lambda done: 0.5 + 0.5 * math.cos(math.pi * min(1.0, done)),
        (v2.RandomIoUCrop(), v2.RandomHorizontalFlip()),
    ),
}


class Photos(torch.utils.data.Dataset):
    """The images of a COCO file with their boxes (xmin, ymin, xmax, ymax in pixels) and labels."""

    def __init__(self, data: Path, split: str, transform: Callable) -> None:
        content = json.loads((data / f"{split}.json").read_text())
        self.images, self.transform = content["images"], transform
        self.folder = data / "images" / split
        self.classes = len(content["categories"])
        self._objects: dict[Any, list[dict]] = {image["id"]: [] for image in self.images}
        for item in content["annotations"]:
            self._objects[item["image_id"]].append(item)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        image = self.images[index]
        pixels = decode_image(str(self.folder / image["file_name"]), ImageReadMode.RGB)
        objects = self._objects[image["id"]]
        boxes = torch.tensor([item["bbox"] for item in objects]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        size = (image["height"], image["width"])
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": torch.tensor([item["category_id"] for item in objects], dtype=torch.int64),
        }
        return self.transform(tv_tensors.Image(pixels), target)


def endless(loader: torch.utils.data.DataLoader) -> Iterator:
    """Yields batches, epoch after epoch."""
    while True:
        yield from loader


def train(model: torch.nn.Module, recipe: Recipe, photos: Photos, seconds: float) -> dict[str, Any]:
    """Trains for a time; returns the images seen, the updates and the last losses."""
    loader = torch.utils.data.DataLoader(
        photos, recipe.batch, shuffle=True, drop_last=True, collate_fn=list
    )
    rate = recipe.rate * recipe.batch / recipe.reference_batch
    optimizer = torch.optim.SGD(model.parameters(), rate, 0.9, weight_decay=recipe.decay)
    warmup = min(1000, len(loader) - 1)  # updates, as in the references' first epoch
    model.train()
    updates, losses, start = 0, [], time.monotonic()
    for rows in endless(loader):
        done = (time.monotonic() - start) / seconds
        if done >= 1:
            break
        ramp = min(1.0, 0.001 + updates / max(1, warmup))
        for group in optimizer.param_groups:
            group["lr"] = rate * ramp * recipe.factor(done)
        loss = sum(model([image for image, _ in rows], [target for _, target in rows]).values())
        if not torch.isfinite(loss):
            raise SystemExit(f"the loss is {loss.item()} at update {updates}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        updates += 1
        losses.append(loss.item())
        if updates % 20 == 0:
            mean = sum(losses[-20:]) / 20
            print(f"update {updates}, {100 * done:.0f} % of the time, loss {mean:.3f}", flush=True)
    return {
        "images": updates * recipe.batch,
        "updates": updates,
        "learning_rate": rate,
        "loss": sum(losses[-20:]) / max(1, len(losses[-20:])),
        "minutes": (time.monotonic() - start) / 60,
    }


@torch.no_grad()
def detect(model: torch.nn.Module, photos: Photos) -> list[dict[str, Any]]:
    """Returns the detections of all images as COCO's results."""
    model.eval()
    results = []
    for index, image in enumerate(photos.images):
        (found,) = model([photos[index][0]])
        columns = (found[name].tolist() for name in ("boxes", "scores", "labels"))
        results += coco_results(image["id"], *columns)
    return results


def main() -> None:
    """Parses the command line, trains and detects."""
    options = parse(__doc__.splitlines()[0], tuple(RECIPES))
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    recipe = RECIPES[options.model]
    to_float = v2.ToDtype(torch.float32, scale=True)
    photos = Photos(
        options.data,
        "train",
        v2.Compose([*recipe.augmentation, v2.SanitizeBoundingBoxes(), to_float, v2.ToPureTensor()]),
    )
    make = getattr(torchvision.models.detection, options.model)
    model = make(weights=None, weights_backbone=None, num_classes=photos.classes + 1)
    summary = {
        "model": options.model,
        "parameters": sum(values.numel() for values in model.parameters()),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        **train(model, recipe, photos, 60 * options.minutes),
    }
    output = options.data / options.model
    write(output, "summary.json", summary)
    print(json.dumps(summary, indent=2), flush=True)
    held_out = Photos(options.data, "val", v2.Compose([to_float, v2.ToPureTensor()]))
    write(output, "detections.json", detect(model, held_out))


if __name__ == "__main__":
    main()
