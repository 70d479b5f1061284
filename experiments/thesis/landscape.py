"""Measures how smooth the loss is along its gradient, over the training of finished runs.

python -m experiments.thesis.landscape --output=runs/thesis             # or runs/thesis_bccd

Compares no BatchNorm with BatchNorm in both, first seed, at every step at which both have a
checkpoint: the paper's argument for why BatchNorm helps. tools.landscape defines the figures.
Writes landscape.md, landscape.json and landscape.png.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.thesis.plan import NORMS, WALKED, run_folder
from scratchdet_jax import cli
from scratchdet_jax.errors import UserError
from scratchdet_jax.files import write_json
from scratchdet_jax.paths import user_path
from scratchdet_jax.reports.curves import save
from scratchdet_jax.run.checkpoints import Checkpoints
from scratchdet_jax.run.open import open_run
from scratchdet_jax.tools.landscape import measure_run, summarize

STEP_SIZES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
BATCHES = 4


def common_steps(folders: Sequence[Path]) -> list[int]:
    """Returns the steps at which every run has a checkpoint.

    Raises:
        UserError: there is none.
    """
    kept = []
    for folder in folders:
        checkpoints = Checkpoints(folder, read_only=True)
        kept.append(set(checkpoints.steps()))
        checkpoints.close()
    common = sorted(set.intersection(*kept))
    if not common:
        raise UserError(f"{', '.join(map(str, folders))} have no checkpoint of the same step")
    return common


def measure(folders: dict[str, Path], data_dir: str | None) -> dict[str, list[dict[str, Any]]]:
    """Returns the landscape of each run at the common steps, by the row's key."""
    found: dict[str, list[dict[str, Any]]] = {key: [] for key in folders}
    for step in common_steps(list(folders.values())):
        for key, folder in folders.items():
            run = open_run(folder, str(step))
            walks = measure_run(run, STEP_SIZES, BATCHES, data_dir)
            found[key].append(summarize(run, walks, STEP_SIZES))
            print(f"{NORMS[key][0]}, step {step}: done", flush=True)
    return found


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Returns the figures as Markdown."""
    lines = [
        "| update | | loss | gradient norm | range of the loss along the gradient | largest "
        "‖g′ − g‖ / ‖g‖ | effective β |",
        "|---|---|---|---|---|---|---|",
    ]

    def show(value: float | None) -> str:
        return "not finite" if value is None else f"{value:.3g}"

    for summaries in zip(*found.values(), strict=True):
        for key, summary in zip(found, summaries, strict=True):
            figures = (
                *(summary["loss"], summary["gradient_norm"], summary["loss_range"]),
                *(_largest_change(summary), summary["beta_smoothness"]),
            )
            cells = (str(summary["step"]), NORMS[key][0], *map(show, figures))
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _largest_change(summary: dict[str, Any]) -> float | None:
    changes = [step["relative_gradient_change"] for step in summary["steps"]]
    return None if None in changes else max(changes)


def draw(found: dict[str, list[dict[str, Any]]], output: Path) -> None:
    """Draws the loss and the change of the gradient along the gradient, over the training."""
    figure = Figure((16, 4.5), layout="constrained")
    panels = figure.subplots(1, 3)
    for key, summaries in found.items():
        title = NORMS[key][0]
        steps = [summary["step"] for summary in summaries]
        along = np.array(
            [
                [summary["loss"], *(_along(summary, step) for step in summary["steps"])]
                for summary in summaries
            ],
            np.float64,
        )
        panels[0].fill_between(steps, along.min(1), along.max(1), alpha=0.4, label=title)
        for panel, values in (
            (panels[1], [_largest_change(summary) for summary in summaries]),
            (panels[2], [summary["beta_smoothness"] for summary in summaries]),
        ):
            panel.plot(steps, np.array(values, np.float64), "o-", markersize=4, label=title)
    sizes = f"steps of {STEP_SIZES[0]:g} to {STEP_SIZES[-1]:g} × gradient"
    titles = (f"loss, {sizes}", "largest ‖g′ − g‖ / ‖g‖ on the way", "effective β-smoothness")
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("update")
        panel.set_yscale("log")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    save(figure, output)


def _along(summary: dict[str, Any], step: dict[str, Any]) -> float:
    change = step["loss_change"]
    return np.nan if change is None else summary["loss"] + change


def parser(program: str) -> argparse.ArgumentParser:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, type=user_path, help="folder of the experiment")
    parser.add_argument("--seed", type=int, default=0, help="of the runs (default 0)")
    parser.add_argument("--data_dir", help="folder of the prepared data sets (default: as trained)")
    return parser


def main(argv: Sequence[str]) -> None:
    """Parses the command line, measures and reports."""
    options = parser(argv[0]).parse_args(argv[1:])
    folders = {key: run_folder(options.output, key, options.seed) for key in WALKED}
    found = measure(folders, options.data_dir)
    write_json(options.output / "landscape.json", found, "--output")
    text = table(found)
    (options.output / "landscape.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")
    draw(found, options.output / "landscape.png")


if __name__ == "__main__":
    cli.run(main)
