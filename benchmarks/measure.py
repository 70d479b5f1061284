"""Shared by the benchmarks: timing, synthetic batches, the training step, peaks, tables."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import optax

from scratchdet_jax.config.validation import validate
from scratchdet_jax.detector import Detector, build_detector
from scratchdet_jax.files import write_json
from scratchdet_jax.forecast.chips import CHIPS, Chip
from scratchdet_jax.forecast.compiled import device_memory
from scratchdet_jax.parallel.devices import AXIS, DeviceMapping
from scratchdet_jax.run.state import TrainState, create_state
from scratchdet_jax.training.optimizer import make_optimizer
from scratchdet_jax.training.step import make_train_step

CLASSES = tuple(f"class {i}" for i in range(1, 21))


def peak_tflops(dtype: str) -> float | None:
    """Returns the peak of one device in TFLOP/s for the compute type; None if unknown."""
    chip = chip_of(jax.devices()[0].device_kind)
    return chip.peak(dtype) / 1e12 if chip else None


def chip_of(kind: str) -> Chip | None:
    """Returns the chip of a JAX device kind, such as "TPU v5 lite"; None of an unknown kind."""
    return next((chip for chip in CHIPS if kind.startswith(chip.kind)), None)


def seconds(run: Callable[[], Any], repeats: int) -> float:
    """Measures the median seconds of a call, after one warm-up call (which compiles)."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def gflop(compiled: jax.stages.Compiled) -> float:
    """Returns GFLOP of one call on each device by XLA's count (a multiply-add counts as two)."""
    counts = compiled.cost_analysis() or {}
    return counts.get("flops", float("nan")) / 1e9


def device_memory_mib(compiled: jax.stages.Compiled) -> float:
    """Returns MiB of one call on each device by XLA's plan: arguments, results and temporaries."""
    return device_memory(compiled)["total"] / 2**20


def synthetic_batch(config: ml_collections.ConfigDict, count: int) -> dict[str, np.ndarray]:
    """Draws `count` canvases of noise with 1 to 8 boxes each, in the form of loader batches."""
    rng = np.random.default_rng(config.seed)
    height, width = config.data.canvas
    slots = config.data.max_boxes
    corner = rng.uniform(0, 0.7, (count, slots, 2))
    side = rng.uniform(0.05, 0.3, (count, slots, 2))
    real = np.arange(slots) < rng.integers(1, min(9, slots + 1), (count, 1))
    boxes = np.where(real[..., None], np.concatenate([corner, corner + side], -1), 0)
    return {
        "image": rng.integers(0, 256, (count, height, width, 3), np.uint8),
        "size": np.tile(np.int32([height, width]), (count, 1)),
        "boxes": boxes.astype(np.float32),
        "labels": np.where(real, rng.integers(1, 21, real.shape), 0).astype(np.int32),
        "ignore": np.zeros(real.shape, bool),
    }


class Training(NamedTuple):
    """What a training step of a config needs, with synthetic data.

    Attributes:
        mapping: over all devices.
        detector: for `CLASSES`.
        optimizer: of the config.
        step: one replica's step, (state, batch) → (state, metrics).
        example: the global batch on the host [batch_size, …].
        batch: the same on the devices, in microbatches.
    """

    mapping: DeviceMapping
    detector: Detector
    optimizer: optax.GradientTransformation
    step: Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]
    example: dict[str, np.ndarray]
    batch: dict[str, jax.Array]

    def new_state(self, image_size: int) -> TrainState:
        """Returns a state with random weights on all devices."""
        return self.mapping.replicate(
            create_state(self.detector.model, self.optimizer, image_size, 0)
        )


def make_training(config: ml_collections.ConfigDict) -> Training:
    """Builds the training step of a config and a batch for it."""
    mapping = DeviceMapping(config.parallel)
    validate(config, mapping.mesh.size)
    detector = build_detector(config, CLASSES, AXIS)
    optimizer = make_optimizer(config)
    step = make_train_step(detector, optimizer)
    example = synthetic_batch(config, config.batch_size)
    parts = config.accumulate_steps
    batch = mapping.put_batch({k: v.reshape(parts, -1, *v.shape[1:]) for k, v in example.items()})
    return Training(mapping, detector, optimizer, step, example, batch)


def report(title: str, rows: Sequence[tuple[str, object]], path: str | None) -> None:
    """Prints a table of figures, and writes it as JSON if `path` is given."""
    device = jax.devices()[0]
    rows = [
        ("device", f"{len(jax.devices())} x {device.device_kind}"),
        ("jax", jax.__version__),
        *rows,
    ]
    print(title)
    for name, value in rows:
        print(f"  {name:<44} {value:.4g}" if isinstance(value, float) else f"  {name:<44} {value}")
    if path:
        write_json(path, dict(rows), "--json")
