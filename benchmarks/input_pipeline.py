"""Measures the speed of the input pipeline.

python -m benchmarks.input_pipeline --dataset=voc_folder/voc2007:train

Measures the original data set and the same pictures at 640×480 (COCO's usual size), with each
number of threads: (a) decoding of the same JPEGs from memory, (b) the loader up to host batches,
(c) the loader up to the device. For comparison, if PyTorch is installed, also a DataLoader whose
workers run SSD's augmentation in NumPy and OpenCV; here the device does that. With JAX on CPU, the
device reads the batch in place: (c) then includes no transfer.

The kinds take turns and the median of the repeats is reported. "A core" is a second of CPU time of
all threads and worker processes, so other load on the machine matters little.
"""

import importlib.util
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import ml_collections
import numpy as np
from absl import flags

from benchmarks import measure, ssd_numpy_augment
from scratchdet_jax import cli
from scratchdet_jax.data.loading import TrainingOrder, read_batches, to_device
from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.datasets.folders import CocoSplit, prepare_coco_folder

BATCH = 32
SEED = 0
WARM_UP = 3  # batches
MAX_BOXES = 100
SIDE = 300
DEMAND = 2000  # images/s of an accelerator


class Rate(NamedTuple):
    """Images per second of wall time, and per second of CPU time."""

    wall: float
    core: float


def define_flags() -> flags.FlagValues:
    """Returns the flags."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "dataset", "voc_folder/voc2007:train", "Data set and split.", flag_values=values
    )
    flags.DEFINE_string("data_dir", "data", "Folder of the prepared data sets.", flag_values=values)
    flags.DEFINE_multi_integer(
        "threads", [1, 2], "Numbers of threads, or of workers.", flag_values=values
    )
    flags.DEFINE_integer("images", 960, "Images of one timed pass.", flag_values=values)
    flags.DEFINE_integer(
        "repeats", 5, "Timed passes of each kind; the median is reported.", flag_values=values
    )
    flags.DEFINE_string("json", None, "Also write the figures to this file.", flag_values=values)
    return values


def main(argv: Sequence[str]) -> None:
    """Parses the command line and measures."""
    values = cli.parse_flags(argv, define_flags())
    cv2.setNumThreads(0)
    jax.block_until_ready(jax.device_put(np.zeros(1)))  # initializes the device
    source = DetectionSource(values.dataset, values.data_dir)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, data, canvas in (
            ("as it is", source, (500, 500)),
            ("640x480", _resized(source, Path(folder), values.images), (640, 640)),
        ):
            rows += _table(name, _kinds(data, canvas, values), values.repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows.append(("peak memory of this process, MiB", peak))
    measure.report(f"input pipeline, {source.spec}", rows, values.json)


def _kinds(
    source: DetectionSource, canvas: tuple[int, int], values: flags.FlagValues
) -> dict[tuple[str, int], Callable[[], Rate]]:
    """Returns the measurements, by name and number of threads."""
    count = values.images
    order = TrainingOrder(len(source), SEED, BATCH)
    encoded = [source[order[i]]["image"] for i in range(count)]
    kinds: dict[tuple[str, int], Callable[[], Rate]] = {}
    for threads in values.threads:
        kinds["decode", threads] = lambda t=threads: _one_pass(lambda: _decode(encoded, t))
        kinds["host", threads] = lambda t=threads: _steady(_batches(source, canvas, t), count)
        kinds["device", threads] = lambda t=threads: _steady(
            to_device(_batches(source, canvas, t), jax.device_put), count
        )
        if importlib.util.find_spec("torch"):
            kinds["PyTorch", threads] = lambda t=threads: _torch_pass(source, t, count)
    return kinds


def _table(
    name: str, kinds: dict[tuple[str, int], Callable[[], Rate]], repeats: int
) -> list[tuple[str, object]]:
    """Measures all kinds in turn."""
    rates: dict[tuple[str, int], list[Rate]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind, run in kinds.items():
            rates[kind].append(run())
    median = {
        kind: Rate(*(statistics.median(values) for values in zip(*found, strict=True)))
        for kind, found in rates.items()
    }
    rows: list[tuple[str, object]] = []
    titles = {
        "decode": "(a) bare decoding",
        "host": "(b) loader, host",
        "device": "(c) loader, device",
        "PyTorch": "DataLoader with SSD's augmentation",
    }
    for (kind, threads), rate in median.items():
        title = f"{name}, {threads} thread{'s' * (threads > 1)}: {titles[kind]}"
        rows += [(f"{title}, images/s", rate.wall), (f"{title}, images/s a core", rate.core)]
        if kind in ("host", "device"):
            bare = median["decode", threads]
            rows.append((f"{title}, share of (a)", rate.wall / bare.wall))
            rows.append((f"{title}, share of (a) a core", rate.core / bare.core))
        if kind in ("device", "PyTorch"):
            rows.append((f"{title}, cores for {DEMAND} images/s", DEMAND / rate.core))
    if not any(kind == "PyTorch" for kind, _ in median):
        rows.append((f"{name}: DataLoader", "PyTorch is not installed"))
    return rows


def _steady(batches: Iterator[Any], count: int) -> Rate:
    """Returns the rate of a loader that prefetches, timed while it is equally far ahead."""
    for _ in range(WARM_UP):
        jax.block_until_ready(next(batches))
    cpu, wall = time.process_time(), time.perf_counter()
    steps = -(-count // BATCH)
    for _ in range(steps):
        jax.block_until_ready(next(batches))
    rate = Rate(
        steps * BATCH / (time.perf_counter() - wall), steps * BATCH / (time.process_time() - cpu)
    )
    batches.close()
    return rate


def _one_pass(run: Callable[[], int]) -> Rate:
    """Returns the rate of a call that returns the number of images it has handled."""
    cpu, wall = time.process_time(), time.perf_counter()
    images = run()
    return Rate(images / (time.perf_counter() - wall), images / (time.process_time() - cpu))


def _decode(encoded: Sequence[bytes], threads: int) -> int:
    def decode(data: bytes) -> None:
        cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        )

    with ThreadPoolExecutor(threads) as pool:
        return len(list(pool.map(decode, encoded)))


def _batches(
    source: DetectionSource, canvas: tuple[int, int], threads: int
) -> Generator[dict[str, np.ndarray], None, None]:
    order = TrainingOrder(len(source), SEED, BATCH)
    settings = {"canvas": canvas, "max_boxes": MAX_BOXES, "threads": threads}
    return read_batches(source, order, (BATCH,), ml_collections.ConfigDict(settings))


def _torch_pass(source: DetectionSource, workers: int, count: int) -> Rate:
    """Measures a PyTorch DataLoader, from each worker's first batch on (without its start)."""
    from torch.utils import data

    loader = data.DataLoader(
        _Augmented(source, count),
        batch_size=BATCH,
        num_workers=workers,
        shuffle=True,
        collate_fn=_collate,
        multiprocessing_context="spawn",
        worker_init_fn=_one_thread,
    )
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    images, cpu, wall = 0, 0.0, 0.0
    for batch in loader:
        worker = batch["worker"]
        last[worker] = batch["cpu"]
        if worker in first:
            images += len(batch["id"])
        first.setdefault(worker, batch["cpu"])
        if len(first) < workers or not images:
            images, cpu, wall = 0, time.process_time(), time.perf_counter()
            first |= last
    spent = time.process_time() - cpu + sum(last[worker] - first[worker] for worker in first)
    return Rate(images / (time.perf_counter() - wall), images / spent)


class _Augmented:
    """The data set of a DataLoader: samples are decoded and augmented one by one."""

    def __init__(self, source: DetectionSource, count: int) -> None:
        self._source, self._count = source, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        example = self._source[index % len(self._source)]
        image = cv2.imdecode(np.frombuffer(example["image"], np.uint8), cv2.IMREAD_COLOR_RGB)
        rng = np.random.default_rng(index)
        return index, *ssd_numpy_augment.augment(
            rng, image, example["boxes"], example["labels"], SIDE
        )


def _collate(samples: list[tuple]) -> dict[str, Any]:
    """Stacks the images, keeps boxes and labels as lists, adds the worker and its CPU time."""
    import torch

    ids, images, boxes, labels = zip(*samples, strict=True)
    return {
        "id": np.array(ids),
        "image": torch.from_numpy(np.stack(images)),
        "boxes": boxes,
        "labels": labels,
        "worker": torch.utils.data.get_worker_info().id,
        "cpu": time.process_time(),
    }


def _one_thread(worker: int) -> None:
    del worker
    cv2.setNumThreads(0)


def _resized(source: DetectionSource, folder: Path, most: int) -> DetectionSource:
    """Resizes pictures and boxes to 640×480 or 480×640, JPEG quality 90, as a new data set."""
    (folder / "images").mkdir()
    images, annotations = [], []
    for i in range(min(len(source), most)):
        example = source[i]
        image = cv2.imdecode(np.frombuffer(example["image"], np.uint8), cv2.IMREAD_COLOR)
        width, height = (640, 480) if image.shape[1] >= image.shape[0] else (480, 640)
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"images/{i}.jpg"), resized, [cv2.IMWRITE_JPEG_QUALITY, 90])
        images.append({"id": i, "file_name": f"{i}.jpg", "width": width, "height": height})
        scale = np.float64([height, width, height, width])
        for box, label in zip(example["boxes"] * scale, example["labels"], strict=True):
            bbox = [box[1], box[0], box[3] - box[1], box[2] - box[0]]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i, "category_id": int(label), "bbox": bbox}
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(source.class_names, start=1)]
    contents = {"images": images, "annotations": annotations, "categories": categories}
    file = folder / "annotations.json"
    file.write_text(json.dumps(contents))
    prepare_coco_folder([CocoSplit("train", file, folder / "images")], folder, "resized")
    return DetectionSource("coco_folder/resized:train", folder)


if __name__ == "__main__":
    cli.run(main)
