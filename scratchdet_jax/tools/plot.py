"""Draws the curves of runs from their metrics.jsonl.

python -m scratchdet_jax.tools.plot RUN [RUN …] --output=curves.png

The first row is the paper's figure: loss, L2 norm of the gradient, fluctuation of that norm.
Curves are named by the fields in which the runs' configs differ.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scratchdet_jax import cli
from scratchdet_jax.errors import UserError
from scratchdet_jax.reports.reading import (
    RunRecords,
    fluctuation,
    label_by_difference,
    read_config,
    read_run,
    run_names,
    running,
    series,
)

# Curves with more points than this are drawn as a running mean with a min–max band.
_POINTS_PER_CURVE = 60
# Relative deviations are taken over this many records.
_WINDOW = 20
# A panel gets a logarithmic axis if its largest value is more than this many times its median.
_LOGARITHMIC_FROM = 100


def relative_deviation(values: np.ndarray, window: int) -> np.ndarray:
    """Standard deviation / mean [n − window + 1] of each window; empty if n < window."""
    if len(values) < window:
        return np.zeros(0)
    windows = np.lib.stride_tricks.sliding_window_view(values, window)
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation = windows.std(axis=-1) / windows.mean(axis=-1)
    return np.where(np.isfinite(deviation), deviation, np.nan)


def draw(runs: Sequence[RunRecords], output: str | Path) -> None:
    """Draws the paper's three panels; below them parts, evaluations, rate and throughput.

    Raises:
        UserError: the picture cannot be written.
    """
    figure, panels = plt.subplots(3, 3, figsize=(16, 12), layout="constrained", sharex=True)
    draw_paper_panels(panels[0], runs)
    (parts, part_norms, deviation), (average_precision, rate, throughput) = panels[1:]
    for run, color in zip(runs, _colors(runs), strict=True):
        _curve(parts, *series(run.train, "loss_classification"), color)
        _curve(parts, *series(run.train, "loss_localization"), color, style="--")
        for part, style in (("backbone", "-"), ("extras", ":"), ("head", "--")):
            _curve(part_norms, *series(run.train, f"gradient_norm_{part}"), color, style=style)
        for field, style in (("loss", "-"), ("gradient_norm", "--")):
            steps, values = series(run.train, field)
            _curve(
                deviation,
                steps[_WINDOW - 1 :],
                relative_deviation(values, _WINDOW),
                color,
                style=style,
            )
        average_precision.plot(*series(run.eval, "mAP"), color=color, marker="o", markersize=3)
        rate.plot(*series(run.train, "learning_rate"), color=color)
        _curve(throughput, *series(run.train, "images_per_second"), color)
    titles = {
        parts: "loss: classification (solid), localization (dashed)",
        part_norms: "gradient: backbone (solid), extras (dotted), head (dashed)",
        deviation: f"deviation / mean, {_WINDOW} records: loss (solid), gradient (dashed)",
        average_precision: "mAP",
        rate: "learning rate",
        throughput: "images per second",
    }
    for panel, title in titles.items():
        finish(panel, title)
    handles, names = panels[0, 0].get_legend_handles_labels()
    longest = max(map(len, names))
    columns = max(1, min(len(runs), 180 // (longest + 8)))
    figure.legend(handles, names, loc="outside lower center", ncols=columns)
    save(figure, output)


def draw_paper_panels(panels: Sequence[Axes], runs: Sequence[RunRecords]) -> None:
    """The paper's figure on three axes: loss, L2 norm of the gradient, fluctuation of that norm.

    A cross marks where a run diverged.
    """
    loss, norm, change = panels
    for run, color in zip(runs, _colors(runs), strict=True):
        name = run.name
        if run.diverged_at is not None:
            name += f" (diverged at step {run.diverged_at})"
        for panel, (steps, values) in (
            (loss, series(run.train, "loss")),
            (norm, series(run.train, "gradient_norm")),
            (change, fluctuation(run.train)),
        ):
            _curve(panel, steps, values, color, name)
            if run.diverged_at is not None and len(values):
                panel.plot(steps[-1], values[-1], "x", color=color, markersize=9, mew=2)
    finish(loss, "loss")
    finish(norm, "gradient L2 norm")
    finish(change, "fluctuation: mean |change of the gradient norm|")


def save(figure: Figure, output: str | Path) -> None:
    """Writes a picture and frees it.

    Raises:
        UserError: the picture cannot be written.
    """
    try:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, dpi=110)
    except (OSError, ValueError) as error:
        raise UserError(f"--output {output} cannot be written: {error}") from error
    finally:
        plt.close(figure)


def _colors(runs: Sequence[RunRecords]) -> list[tuple[float, ...]]:
    colors = plt.get_cmap("tab10" if len(runs) <= 10 else "tab20").colors
    return [colors[i % len(colors)] for i in range(len(runs))]


def _curve(
    panel: Axes,
    steps: np.ndarray,
    values: np.ndarray,
    color: tuple[float, ...],
    name: str | None = None,
    style: str = "-",
) -> None:
    """Draws one curve; a long one as a running mean with a min–max band."""
    window = max(1, len(values) // _POINTS_PER_CURVE)
    if window > 1:
        mean, low, high = running(values, window)
        steps = steps[window // 2 :][: len(mean)]
        panel.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
        values = mean
    panel.plot(steps, values, style, color=color, label=name, linewidth=1.3)


def finish(panel: Axes, title: str) -> None:
    """Labels a panel, and chooses a linear axis from 0 or a logarithmic one."""
    panel.set_title(title, fontsize=10)
    panel.set_xlabel("step")
    panel.tick_params(labelbottom=True)
    panel.grid(alpha=0.3)
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in panel.lines])
    values = values[np.isfinite(values)]
    if not len(values):
        panel.text(0.5, 0.5, "no data", ha="center", va="center", transform=panel.transAxes)
    elif values.max() > _LOGARITHMIC_FROM * np.median(values) > 0:
        panel.set_yscale("log")
    else:
        panel.set_ylim(0, max(panel.get_ylim()[1], 1.05 * values.max()) or 1)


def parser(program: str) -> argparse.ArgumentParser:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Draws the curves of runs from their metrics.jsonl: loss, gradient norm and "
        "its fluctuation, then parts, AP, learning rate and throughput.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--output", required=True, help="picture to write, such as curves.png")
    return parser


def main(argv: Sequence[str]) -> None:
    """Parses the command line and draws."""
    options = parser(argv[0]).parse_args(argv[1:])
    configs = [read_config(run) for run in options.runs]
    names = label_by_difference(run_names(options.runs), configs)
    runs = [read_run(run, name) for run, name in zip(options.runs, names, strict=True)]
    draw(runs, options.output)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    cli.run(main)
