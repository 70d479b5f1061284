"""Measures how smooth the loss is along its gradient.

scratchdet landscape RUN [RUN …] --checkpoint=latest --output=landscape.json

This is the measurement behind the claim that BatchNorm smooths the loss surface (Santurkar et al.
2018, "How Does Batch Normalization Help Optimization?", section 3.1). From the parameters x of a
checkpoint, it takes steps of several sizes η along the gradient g of the next training batch. At
x − ηg it measures the loss, the change of the gradient, and the effective β-smoothness
‖g(x − ηg) − g(x)‖ / ‖ηg‖. Compare runs at the same step sizes.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scratchdet_jax import cli
from scratchdet_jax.data.sources import open_split
from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation.saved_run import check_classes
from scratchdet_jax.files import write_json
from scratchdet_jax.paths import user_path
from scratchdet_jax.reports.page.tables import text_table
from scratchdet_jax.run.open import SavedRun, load_detector, open_run
from scratchdet_jax.run.replay import batch_of_step
from scratchdet_jax.training.step import example_keys

STEP_SIZES = (0.0005, 0.002, 0.01, 0.05, 0.2)


class Walk(NamedTuple):
    """The measurements of a walk along the gradient; arrays have one value per step size [n].

    Attributes:
        loss: at the start.
        gradient_norm: ‖g‖₂ at the start.
        losses: at x − ηg.
        gradient_changes: ‖g(x − ηg) − g(x)‖₂ (Santurkar et al.'s gradient predictiveness).
        smoothness: gradient_changes / ‖ηg‖₂; the largest is the effective β-smoothness.
    """

    loss: float
    gradient_norm: float
    losses: np.ndarray
    gradient_changes: np.ndarray
    smoothness: np.ndarray


def make_walk(
    loss_and_gradient: Callable[[Any, Any], tuple[jax.Array, Any]],
) -> Callable[[Any, Any, Sequence[float]], Walk]:
    """Makes a function (params, inputs, step_sizes) → Walk.

    `loss_and_gradient` takes (params, inputs) and is compiled once for all walks. A loss that
    overflows is returned as inf or NaN.
    """

    @jax.jit
    def at(params: Any, inputs: Any, gradient: Any, size: jax.Array) -> tuple[jax.Array, Any, Any]:
        moved = jax.tree.map(lambda x, g: x - size * g, params, gradient)
        loss, new = loss_and_gradient(moved, inputs)
        return loss, new, optax.tree.norm(jax.tree.map(jnp.subtract, new, gradient))

    def walk(params: Any, inputs: Any, step_sizes: Sequence[float]) -> Walk:
        nowhere = jax.tree.map(jnp.zeros_like, params)
        loss, gradient, norm = at(params, inputs, nowhere, jnp.float32(0))
        sizes = np.asarray(step_sizes, np.float64)
        met = [at(params, inputs, gradient, jnp.float32(size)) for size in sizes]
        losses = np.array([float(loss) for loss, _, _ in met])
        changes = np.array([float(change) for _, _, change in met])
        with np.errstate(divide="ignore", invalid="ignore"):
            smoothness = changes / (sizes * float(norm))
        return Walk(float(loss), float(norm), losses, changes, smoothness)

    return walk


def measure_run(
    run: SavedRun, step_sizes: Sequence[float], batches: int, data_dir: str | None = None
) -> list[Walk]:
    """Walks from a checkpoint, one for each of the next `batches` updates of its training.

    The batch of a walk is the first microbatch of the update: batch_size / accumulate_steps images
    on one device, augmented as in the run. The loss is the training loss, in training mode.
    """
    config = run.info.config.copy_and_resolve_references()
    if data_dir:
        config.data.dir = data_dir
    source = open_split(config.data, "train")
    check_classes(run, source)
    detector, variables = load_detector(run, config)
    count = config.batch_size // config.accumulate_steps

    @jax.jit
    def prepare(batch: Any, step: jax.Array) -> Any:
        keys = example_keys(config.seed, step, jnp.arange(count))
        return detector.inputs(batch, keys)

    @jax.value_and_grad
    def loss_and_gradient(params: Any, inputs: tuple[jax.Array, Any]) -> jax.Array:
        images, targets = inputs
        sums, _ = detector.loss(params, variables["batch_stats"], images, targets)
        return sums.total / jnp.maximum(sums.positives, 1.0)

    walk = make_walk(loss_and_gradient)

    walks = []
    for step in range(run.step, run.step + batches):
        batch = batch_of_step(config, source, step + 1)
        first = {key: value[0] for key, value in batch.items()}  # one microbatch
        walks.append(walk(variables["params"], prepare(first, step), step_sizes))
    return walks


def summarize(run: SavedRun, walks: Sequence[Walk], step_sizes: Sequence[float]) -> dict[str, Any]:
    """Returns the means over the walks, for JSON: None where not finite."""
    # [walks] or [walks, step sizes]
    loss, norm, losses, changes, smoothness = (np.array(v) for v in zip(*walks, strict=True))
    along = np.column_stack([loss, losses])
    with np.errstate(divide="ignore", invalid="ignore"):
        by_step = {
            "loss_change": losses - loss[:, None],
            "relative_gradient_change": changes / norm[:, None],
            "gradient_change": changes,
            "smoothness": smoothness,
        }
        loss_range = along.max(1) - along.min(1)
    return {
        "run": str(run.workdir),
        "step": run.step,
        "batches": len(walks),
        "loss": _mean(loss),
        "gradient_norm": _mean(norm),
        "loss_range": _mean(loss_range),
        "beta_smoothness": _mean(smoothness.max(1)),
        "steps": [
            {"step_size": size} | {name: _mean(values[:, i]) for name, values in by_step.items()}
            for i, size in enumerate(step_sizes)
        ],
    }


def _mean(values: Any) -> float | None:
    mean = np.mean(values)
    return float(mean) if np.isfinite(mean) else None


def text(summary: dict[str, Any]) -> str:
    """Writes a summary as a sentence and a table."""

    def show(value: float | None) -> str:
        return "not finite" if value is None else f"{value:.4g}"

    fields = ("loss_change", "gradient_change", "relative_gradient_change", "smoothness")
    head = ("step size", "loss change", "‖g′ − g‖", "‖g′ − g‖/‖g‖", "β")
    rows = [
        (f"{step['step_size']:g}", *(show(step[field]) for field in fields))
        for step in summary["steps"]
    ]
    return (
        f"{summary['run']} at step {summary['step']}, mean of {summary['batches']} batches: loss "
        f"{show(summary['loss'])}, gradient norm {show(summary['gradient_norm'])}; along the "
        f"gradient a loss range of {show(summary['loss_range'])}, effective β-smoothness "
        f"{show(summary['beta_smoothness'])}\n{text_table([head, *rows])}"
    )


def parser(program: str) -> argparse.ArgumentParser:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--checkpoint", default="latest", help="best, latest or a step")
    parser.add_argument(
        "--step_sizes", type=float, nargs="+", default=STEP_SIZES, help=f"default: {STEP_SIZES}"
    )
    parser.add_argument("--batches", type=int, default=4, help="batches to average (default 4)")
    parser.add_argument("--data_dir", help="folder of the data sets (default: as in training)")
    parser.add_argument("--output", type=user_path, help="also write the figures to this JSON file")
    return parser


def main(argv: Sequence[str]) -> None:
    """Parses the command line, measures the runs and prints."""
    options = parser(argv[0]).parse_args(argv[1:])
    if min(options.step_sizes) <= 0 or options.batches < 1:
        raise UserError("--step_sizes and --batches must be above 0")
    summaries = []
    for workdir in options.runs:
        run = open_run(user_path(workdir), options.checkpoint)
        walks = measure_run(run, options.step_sizes, options.batches, options.data_dir)
        summaries.append(summarize(run, walks, options.step_sizes))
        print(text(summaries[-1]), flush=True)
    if options.output:
        write_json(options.output, summaries, "--output")
        print(f"wrote {options.output}")


if __name__ == "__main__":
    cli.run(main)
