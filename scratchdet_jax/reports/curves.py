"""Draws curves of runs with matplotlib, for `plot`, the report's page and the experiments."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import ColorType

from scratchdet_jax.errors import UserError
from scratchdet_jax.reports.reading import RunRecords, fluctuation, running, series

# Curves with at least twice as many points are drawn as a running mean with a min–max band.
_POINTS_PER_CURVE = 80
# Relative deviations are taken over this many records.
_WINDOW = 20
# A panel gets a logarithmic axis if its largest value is more than this many times its median.
_LOGARITHMIC_FROM = 100


def draw_curve(
    panel: Axes,
    steps: np.ndarray,
    values: np.ndarray,
    color: ColorType,
    name: str | None = None,
    *,
    style: str = "-",
    dots: bool = False,
) -> None:
    """Draws one curve; a long one as a running mean with a min–max band.

    Args:
        panel: where to draw.
        steps: [n].
        values: [n]; NaN is a gap, and a point between two gaps is drawn as a dot.
        color: of the curve.
        name: in the legend.
        style: of the line, by matplotlib's names.
        dots: whether to mark every point.
    """
    window = len(values) // _POINTS_PER_CURVE
    if window > 1:
        every = slice(None, None, window // 2)
        values, low, high = (part[every] for part in running(values, window))
        steps = steps[window // 2 :][every][: len(values)]
        panel.fill_between(steps, low, high, color=color, alpha=0.16, linewidth=0)
    values = np.asarray(values, float)
    finite = np.pad(np.isfinite(values), 1)
    marked = finite[1:-1] & (dots | ~(finite[:-2] | finite[2:]))
    (line,) = panel.plot(
        steps,
        values,
        style,
        color=color,
        label=name,
        linewidth=1.5,
        marker="o" if marked.any() else "",
        markersize=4,
        markevery=np.flatnonzero(marked).tolist(),
        clip_on=False,
    )
    line.set_in_layout(False)  # a point outside the axes must not shrink them


def set_scale(panel: Axes) -> None:
    """Chooses a linear axis from 0 or a logarithmic one; says so if there are no values."""
    lines = [np.asarray(line.get_ydata(), float) for line in panel.lines]
    values = np.concatenate([np.zeros(0), *lines])
    values = values[np.isfinite(values)]
    if not len(values):
        panel.set_yticks([])
        panel.text(0.5, 0.5, "no data", ha="center", va="center", transform=panel.transAxes)
    elif values.max() > _LOGARITHMIC_FROM * np.median(values) > 0:
        panel.set_yscale("log", nonpositive="mask")
    else:
        panel.set_ylim(0, max(panel.get_ylim()[1], 1.05 * values.max()) or 1)


def finish(panel: Axes, title: str) -> None:
    """Labels a panel and chooses its vertical axis."""
    panel.set_title(title, fontsize=10)
    panel.set_xlabel("step")
    panel.tick_params(labelbottom=True)
    panel.grid(alpha=0.3)
    set_scale(panel)


def draw_runs(runs: Sequence[RunRecords]) -> Figure:
    """Draws the paper's three panels; below them parts, evaluations, rate and throughput."""
    figure = Figure((16, 12), layout="constrained")
    panels = figure.subplots(3, 3, sharex=True)
    draw_paper_panels(panels[0], runs)
    (parts, part_norms, deviation), (average_precision, rate, throughput) = panels[1:]
    for run, color in zip(runs, _colors(runs), strict=True):
        for panel, field, style in (
            (parts, "loss_classification", "-"),
            (parts, "loss_localization", "--"),
            (part_norms, "gradient_norm_backbone", "-"),
            (part_norms, "gradient_norm_extras", ":"),
            (part_norms, "gradient_norm_head", "--"),
            (rate, "learning_rate", "-"),
            (throughput, "images_per_second", "-"),
        ):
            draw_curve(panel, *series(run.train, field), color, style=style)
        for field, style in (("loss", "-"), ("gradient_norm", "--")):
            steps, values = series(run.train, field)
            changes = relative_deviation(values, _WINDOW)
            draw_curve(deviation, steps[_WINDOW - 1 :], changes, color, style=style)
        draw_curve(average_precision, *series(run.eval, "mAP"), color, dots=True)
    finish(parts, "loss: classification (solid), localization (dashed)")
    finish(part_norms, "gradient: backbone (solid), extras (dotted), head (dashed)")
    finish(deviation, f"deviation / mean, {_WINDOW} records: loss (solid), gradient (dashed)")
    finish(average_precision, "mAP")
    finish(rate, "learning rate")
    finish(throughput, "images per second")
    handles, names = panels[0, 0].get_legend_handles_labels()
    columns = max(1, min(len(runs), 180 // (max(map(len, names)) + 8)))
    figure.legend(handles, names, loc="outside lower center", ncols=columns)
    return figure


def draw_paper_panels(panels: Sequence[Axes], runs: Sequence[RunRecords]) -> None:
    """Draws the paper's figure on three axes: loss, L2 norm of the gradient, its fluctuation.

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
            draw_curve(panel, steps, values, color, name)
            if run.diverged_at is not None and len(values):
                panel.plot(steps[-1], values[-1], "x", color=color, markersize=9, mew=2)
    finish(loss, "loss")
    finish(norm, "gradient L2 norm")
    finish(change, "fluctuation: mean |change of the gradient norm|")


def relative_deviation(values: np.ndarray, window: int) -> np.ndarray:
    """Returns standard deviation / mean [n − window + 1] of each window; empty if n < window."""
    if len(values) < window:
        return np.zeros(0)
    windows = np.lib.stride_tricks.sliding_window_view(values, window)
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation = windows.std(axis=-1) / windows.mean(axis=-1)
    return np.where(np.isfinite(deviation), deviation, np.nan)


def save(figure: Figure, output: str | Path) -> None:
    """Writes a picture.

    Raises:
        UserError: the picture cannot be written.
    """
    try:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, dpi=110)
    except (OSError, ValueError) as error:
        raise UserError(f"--output {output} cannot be written: {error}") from error


def _colors(runs: Sequence[RunRecords]) -> list[ColorType]:
    colors = mpl.color_sequences["tab10" if len(runs) <= 10 else "tab20"]
    return [colors[i % len(colors)] for i in range(len(runs))]
