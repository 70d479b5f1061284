"""What the benchmarks share: timing, synthetic batches, the device's peak, tables."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

# Dense peak in TFLOP/s without sparsity, from the makers' data sheets, by the start of the
# device's kind as JAX reports it: (bfloat16, float32 as XLA runs it by default: TF32 on NVIDIA).
PEAK_TFLOPS = {
    "NVIDIA A100": (312, 156),
    "NVIDIA H100": (989, 495),
    "NVIDIA H200": (989, 495),
    "TPU v4": (275, 275),
    "TPU v5 lite": (197, 197),
    "TPU v5": (459, 459),
    "TPU v6": (918, 918),
}


def peak_tflops(dtype: str) -> float | None:
    """Peak of one device in TFLOP/s for the compute type, or None where it is not known."""
    kind = jax.devices()[0].device_kind
    for name, (bfloat16, float32) in PEAK_TFLOPS.items():
        if kind.startswith(name):
            return bfloat16 if dtype == "bfloat16" else float32
    return None


def seconds(run: Callable[[], Any], repeats: int) -> float:
    """Median seconds of a call whose result is waited for; one warm-up call (compiles) before."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def gflop(compiled: jax.stages.Compiled) -> float:
    """GFLOP of one call by XLA's count (multiply and add apart), on each device."""
    analysis = compiled.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    return analysis.get("flops", float("nan")) / 1e9


def device_memory_mib(compiled: jax.stages.Compiled) -> float:
    """MiB one call needs on each device: arguments, results and temporaries, by XLA's plan."""
    plan = compiled.memory_analysis()
    total = (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        + plan.temp_size_in_bytes
        - plan.alias_size_in_bytes
    )
    return total / 2**20


def synthetic_batch(config: ml_collections.ConfigDict, count: int) -> dict[str, np.ndarray]:
    """`count` canvases of noise with 1 to 8 boxes each, as the loader would deliver them."""
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


def report(title: str, rows: Sequence[tuple[str, object]], path: str | None) -> None:
    """Prints a table of figures and writes it as JSON where `path` is given."""
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
        Path(path).write_text(json.dumps(dict(rows), indent=2) + "\n")
