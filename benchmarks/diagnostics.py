"""Cost of the diagnostics that are always on: python benchmarks/diagnostics.py --config=FILE.

Times the training step without any gradient norm, with the norm of the whole gradient, and with
the norms of its parts too, one after the other in every round, so that other work on the machine
meets all three alike. A norm that nobody asks for is removed by the compiler. Also times the norms
alone, and what the log does for a step on the host.
"""

import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
from absl import flags

from benchmarks import measure
from scratchdet_jax import cli
from scratchdet_jax.config.validation import validate
from scratchdet_jax.detector import build_detector
from scratchdet_jax.parallel.devices import AXIS, DeviceMapping
from scratchdet_jax.run.metrics import MetricLogger
from scratchdet_jax.run.state import create_state
from scratchdet_jax.training.optimizer import make_optimizer
from scratchdet_jax.training.step import gradient_norms, make_train_step

CLASSES = tuple(f"class {i}" for i in range(1, 21))
KINDS = ("without norms", "with the whole norm", "with the parts' norms")
LOGGED_STEPS = 500

flags.DEFINE_integer("repeats", 20, "Rounds of the three steps.")
flags.DEFINE_string("json", None, "Also write the figures to this file.")


def main(argv: Sequence[str]) -> None:
    """Parses the command line and measures."""
    config, repeats = cli.parse_config(argv), flags.FLAGS.repeats
    mapping = DeviceMapping(config.parallel)
    validate(config, mapping.mesh.size)
    detector = build_detector(config, CLASSES, AXIS)
    optimizer = make_optimizer(config)
    whole = make_train_step(detector, optimizer)
    example = measure.synthetic_batch(config, config.batch_size)
    parts = config.accumulate_steps
    batch = mapping.put_batch({k: v.reshape(parts, -1, *v.shape[1:]) for k, v in example.items()})

    def keep(wanted):
        def step(state, batch):
            state, metrics = whole(state, batch)
            return state, {name: value for name, value in metrics.items() if wanted(name)}

        return mapping.map_train_step(step)

    wanted = (
        lambda name: not name.startswith("gradient_norm"),
        lambda name: not name.startswith("gradient_norm_"),
        lambda name: True,
    )
    compiled, states = [], []
    for kind in wanted:
        state = create_state(detector.model, optimizer, config.image_size, 0)
        states.append(mapping.replicate(state))
        compiled.append(keep(kind).lower(states[-1], batch).compile())

    times = [[] for _ in KINDS]
    for turn in range(repeats + 1):
        for i in range(len(KINDS)):
            k = (i + turn) % len(KINDS)  # nobody is always first
            start = time.perf_counter()
            states[k], metrics = compiled[k](states[k], batch)
            jax.block_until_ready((states[k], metrics))
            if turn:  # the first round warms up
                times[k].append(time.perf_counter() - start)
    rows = [
        (f"{kind}, ms (median)", 1e3 * statistics.median(t))
        for kind, t in zip(KINDS, times, strict=True)
    ]
    for kind, t in zip(KINDS[1:], times[1:], strict=True):
        ratios = sorted(b / a for a, b in zip(times[0], t, strict=True))
        rows += [
            (f"{kind} / without, median of rounds", statistics.median(ratios)),
            (
                f"{kind} / without, quartiles",
                f"{_quartile(ratios, 1):.4f} to {_quartile(ratios, 3):.4f}",
            ),
        ]
    norms = jax.jit(gradient_norms)
    alone = measure.seconds(lambda: norms(states[0].params), repeats)
    flops = [measure.gflop(program) for program in compiled]
    rows += [
        ("norms alone, ms (median)", 1e3 * alone),
        ("norms alone / step without", alone / statistics.median(times[0])),
        ("GFLOP of the parts' norms", flops[2] - flops[0]),
        ("share of the step's GFLOP", (flops[2] - flops[0]) / flops[2]),
        ("log on the host, ms a step, every step written", _log_milliseconds(metrics)),
    ]
    title = f"diagnostics, {config.name}, batch {config.batch_size}, {repeats} rounds"
    measure.report(title, rows, flags.FLAGS.json)


def _quartile(ordered: Sequence[float], which: int) -> float:
    return statistics.quantiles(ordered, n=4)[which - 1] if len(ordered) > 1 else ordered[0]


def _log_milliseconds(metrics: dict[str, jax.Array]) -> float:
    """Of log_step for metrics that are ready, written to metrics.jsonl and TensorBoard."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        logger = MetricLogger(
            Path(folder), start_step=0, num_steps=LOGGED_STEPS, batch_size=1, log_every=1
        )
        start = time.perf_counter()
        for step in range(1, LOGGED_STEPS + 1):
            logger.log_step(step, metrics)
        logger.flush()
        spent = time.perf_counter() - start
        logger.close()
    return 1e3 * spent / LOGGED_STEPS


if __name__ == "__main__":
    cli.run(main)
