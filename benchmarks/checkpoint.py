"""Measures the cost of a checkpoint.

python -m benchmarks.checkpoint --config=configs/voc300.py [--bucket_delay=0.05]

Saves the complete state of the model (parameters, momentum and statistics, with random values)
several times. `save` returns when the arrays are copied; the files are written in the background
while training continues. Also times the start of a run: verifying the checksums of all files, and
restoring. With --bucket_delay, saves in turns to a disk and to a bucket of the tests' storage
server, whose every answer takes that many seconds longer.
"""

import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import measure
from scratchdet_jax import cli
from scratchdet_jax.detector import build_detector
from scratchdet_jax.parallel.devices import DeviceMapping
from scratchdet_jax.paths import run_path
from scratchdet_jax.run.checkpoints import CHECKSUMS, Checkpoints, RunInfo
from scratchdet_jax.run.state import TrainState, create_state
from scratchdet_jax.training.optimizer import make_optimizer
from tests import storage


def define_flags() -> flags.FlagValues:
    """Returns the flags besides the config."""
    values = flags.FlagValues()
    flags.DEFINE_integer(
        "repeats", 7, "Number of saves; the first is not counted.", flag_values=values
    )
    flags.DEFINE_float(
        "bucket_delay", None, "Measure a bucket too; seconds.", flag_values=values, lower_bound=0
    )
    flags.DEFINE_string("json", None, "Also write the figures to this file.", flag_values=values)
    return values


def main(argv: Sequence[str]) -> None:
    """Parses the command line and measures."""
    values = define_flags()
    config, repeats = cli.parse_config(argv, values), values.repeats
    detector = build_detector(config, measure.CLASSES)
    optimizer = make_optimizer(config)
    shapes = jax.eval_shape(lambda: create_state(detector.model, optimizer, config.image_size, 0))
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(rng.normal(size=leaf.shape).astype(leaf.dtype))

    state = DeviceMapping(config.parallel).replicate(jax.tree.map(draw, shapes))
    info = RunInfo(config, measure.CLASSES)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        places = {"disk": folder / "run"}
        if values.bucket_delay is not None:
            server = stack.enter_context(storage.running(folder / "storage"))
            os.environ.update(server.environment)
            places["bucket"] = run_path(server.make_bucket("bucket")) / "run"
            server.network.delay = values.bucket_delay
        runs = {name: Checkpoints(path, keep=2) for name, path in places.items()}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in places}
        for step in range(1, repeats + 1):
            for name, checkpoints in runs.items():
                times[name].append(save(checkpoints, step, state, info))
        rows = [("arrays, MiB", sum(x.nbytes for x in jax.tree.leaves(state)) / 2**20)]
        for name, checkpoints in runs.items():
            checkpoints.close()
            rows += figures(name, places[name], times[name][1:], state)
    if "bucket" in times:
        blocked = [statistics.median(t for t, _ in times[name][1:]) for name in ("bucket", "disk")]
        rows.append(("stall, bucket / disk", blocked[0] / blocked[1]))
    measure.report(f"checkpoint, {config.name}, {repeats} saves", rows, values.json)


def save(
    checkpoints: Checkpoints, step: int, state: TrainState, info: RunInfo
) -> tuple[float, float]:
    """Returns the seconds until `save` returns, and until the checkpoint is complete."""
    start = time.perf_counter()
    checkpoints.save(step, state, info)
    stall = time.perf_counter() - start
    checkpoints.wait()
    return stall, time.perf_counter() - start


def figures(
    name: str, place: Path, times: list[tuple[float, float]], state: TrainState
) -> list[tuple[str, float]]:
    """Returns the rows of a place, after reading its newest checkpoint."""
    stalls, complete = zip(*times, strict=True)
    checkpoints = Checkpoints(place, keep=2)
    start = time.perf_counter()
    step = checkpoints.newest_sound_step()
    checked = time.perf_counter() - start
    start = time.perf_counter()
    jax.block_until_ready(checkpoints.restore(step, state))
    restored = time.perf_counter() - start
    checkpoints.close()
    sums = json.loads((checkpoints.directory / str(step) / CHECKSUMS).read_text())
    return [
        (f"{name}: files, MiB", sum(size for size, _ in sums.values()) / 2**20),
        (f"{name}: files", len(sums)),
        (f"{name}: stall of the loop, ms (median)", 1e3 * statistics.median(stalls)),
        (f"{name}: stall of the loop, ms (most)", 1e3 * max(stalls)),
        (f"{name}: until complete, ms (median)", 1e3 * statistics.median(complete)),
        (f"{name}: checking the sums, ms", 1e3 * checked),
        (f"{name}: restoring, ms", 1e3 * restored),
    ]


if __name__ == "__main__":
    cli.run(main)
