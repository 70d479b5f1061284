"""Measures the cost of the diagnostics that are always on.

python -m benchmarks.diagnostics --config=FILE

Times the training step without gradient norms, with the norm of the whole gradient, and with the
norms of its parts too. The three take turns in every round, so that other load on the machine
affects them equally. The compiler removes a norm that is not returned. Also times the norms alone,
and the logging of a step on the host.
"""

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from benchmarks import measure
from scratchdet_jax import cli
from scratchdet_jax.mirror import Mirror
from scratchdet_jax.run.metrics import MetricLogger
from scratchdet_jax.training.step import gradient_norms

KINDS = ("without norms", "with the whole norm", "with the parts' norms")
LOGGED_STEPS = 500


def define_flags() -> flags.FlagValues:
    """Returns the flags besides the config."""
    values = flags.FlagValues()
    flags.DEFINE_integer("repeats", 20, "Number of rounds of the three steps.", flag_values=values)
    flags.DEFINE_string("json", None, "Also write the figures to this file.", flag_values=values)
    return values


def main(argv: Sequence[str]) -> None:
    """Parses the command line and measures."""
    values = define_flags()
    config, repeats = cli.parse_config(argv, values), values.repeats
    training = measure.make_training(config)

    def keep(wanted):
        def step(state, batch):
            state, metrics = training.step(state, batch)
            return state, {name: value for name, value in metrics.items() if wanted(name)}

        return training.mapping.map_train_step(step)

    wanted = (
        lambda name: not name.startswith("gradient_norm"),
        lambda name: not name.startswith("gradient_norm_"),
        lambda name: True,
    )
    compiled, states = [], []
    for kind in wanted:
        states.append(training.new_state(config.image_size))
        compiled.append(keep(kind).lower(states[-1], training.batch).compile())

    times = [[] for _ in KINDS]
    for turn in range(repeats + 1):
        for i in range(len(KINDS)):
            k = (i + turn) % len(KINDS)  # each is first in turn
            start = time.perf_counter()
            states[k], metrics = compiled[k](states[k], training.batch)
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
    measure.report(title, rows, values.json)


def _quartile(ordered: Sequence[float], which: int) -> float:
    return statistics.quantiles(ordered, n=4)[which - 1] if len(ordered) > 1 else ordered[0]


def _log_milliseconds(metrics: dict[str, jax.Array]) -> float:
    """Times log_step in milliseconds, with ready metrics, into metrics.jsonl and TensorBoard."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        logger = MetricLogger(
            Mirror(Path(folder)), start_step=0, num_steps=LOGGED_STEPS, batch_size=1, log_every=1
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
