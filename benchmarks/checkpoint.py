"""Measures the cost of a checkpoint.

python -m benchmarks.checkpoint --config=configs/voc300.py

Saves the complete state of the model (parameters, momentum and statistics, with random values)
several times. `save` returns when the arrays are copied; the files are written in the background
while training continues. Also times the start of a run: verifying the checksums of all files, and
restoring.
"""

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
from scratchdet_jax.run.checkpoints import Checkpoints, RunInfo
from scratchdet_jax.run.state import create_state
from scratchdet_jax.training.optimizer import make_optimizer


def define_flags() -> flags.FlagValues:
    """Returns the flags besides the config."""
    values = flags.FlagValues()
    flags.DEFINE_integer(
        "repeats", 7, "Number of saves; the first is not counted.", flag_values=values
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
    stalls, complete = [], []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), keep=2)
        for step in range(1, repeats + 1):
            start = time.perf_counter()
            checkpoints.save(step, state, info)
            stalls.append(time.perf_counter() - start)
            checkpoints.wait()
            complete.append(time.perf_counter() - start)
        checkpoints.close()
        files = [p for p in (checkpoints.directory / str(repeats)).rglob("*") if p.is_file()]
        size = sum(p.stat().st_size for p in files)
        checkpoints = Checkpoints(Path(folder), keep=2)
        start = time.perf_counter()
        step = checkpoints.newest_sound_step()
        checked = time.perf_counter() - start
        start = time.perf_counter()
        jax.block_until_ready(checkpoints.restore(step, state))
        restored = time.perf_counter() - start
        checkpoints.close()
    arrays = sum(x.nbytes for x in jax.tree.leaves(state))
    rows = [
        ("arrays, MiB", arrays / 2**20),
        ("on disk, MiB", size / 2**20),
        ("files", len(files)),
        ("stall of the loop, ms (median)", 1e3 * statistics.median(stalls[1:])),
        ("stall of the loop, ms (most)", 1e3 * max(stalls[1:])),
        ("until on disk, ms (median)", 1e3 * statistics.median(complete[1:])),
        ("checking the sums, ms", 1e3 * checked),
        ("restoring, ms", 1e3 * restored),
    ]
    measure.report(f"checkpoint, {config.name}, {repeats} saves", rows, values.json)


if __name__ == "__main__":
    cli.run(main)
