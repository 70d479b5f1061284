"""Reads the logs of runs and draws their curves, for `plot`, `report` and the experiments."""

import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import ColorType

from scratchdet_jax.errors import UserError
from scratchdet_jax.files import absolute, write_atomically
from scratchdet_jax.paths import user_path

# Curves with at least twice as many points are drawn as a running mean with a min–max band.
_POINTS_PER_CURVE = 80
# A panel gets a logarithmic axis if its largest value is more than this many times its median.
_LOGARITHMIC_FROM = 100
CHARTS = {
    "loss": "Loss",
    "loss_classification": "Loss of the classes",
    "loss_localization": "Loss of the boxes",
    "learning_rate": "Learning rate",
    "gradient_norm": "Gradient norm (L2)",
    "gradient_fluctuation": "Fluctuation of the gradient norm: mean |‖g(t)‖ − ‖g(t − 1)‖| over the "
    "updates since the previous line of the log",
    "mAP": "mAP on the eval split while training",
    "images_per_second": "Images per second",
    "loader_wait": "Share of the time in which the loop waits for the loader",
}
"""What the curves show, by field of the log."""
PAPER = {
    "loss": "loss",
    "gradient_norm": "gradient L2 norm",
    "gradient_fluctuation": "fluctuation: mean |change of the gradient norm|",
}
"""Titles of the paper's three panels."""


class RunRecords(NamedTuple):
    """The records of one run, each kind in order of step.

    Attributes:
        name: name of the curve.
        train: records of kind "train".
        eval: records of kind "eval".
        diverged_at: the step at which the run stopped because a value was not finite.
    """

    name: str
    train: list[dict[str, Any]]
    eval: list[dict[str, Any]]
    diverged_at: int | None = None

    def curve(self, field: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the `series` of a field of the log."""
        return series(self.eval if field == "mAP" else self.train, field)


def read_run(workdir: str | Path, name: str) -> RunRecords:
    """Reads the metrics.jsonl of a work folder.

    If a step is there twice, the later record is used. A truncated last line (the run was killed,
    or is writing it now) is skipped with a warning on stderr.

    Raises:
        UserError: the file is missing, has no records, or is garbled.
    """
    path = user_path(workdir) / "metrics.jsonl"
    try:
        lines = path.read_bytes().decode(errors="replace").splitlines()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give the work folder of a run"
        ) from error
    records: dict[str, dict[int, dict[str, Any]]] = {"train": {}, "eval": {}, "diverged": {}}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            kind, step = record["kind"], int(record["step"])
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                print(f"warning: {path}: the last line is truncated; skipped", file=sys.stderr)
                continue
            raise UserError(
                f"{path}, line {number} is not a record with 'kind' and 'step': the file is garbled"
            ) from error
        if kind in records:
            records[kind][step] = record
    train, evaluation, diverged = ([kept[s] for s in sorted(kept)] for kept in records.values())
    if not train and not evaluation and not diverged:
        raise UserError(f"{path} has no records yet: there is nothing to plot")
    return RunRecords(name, train, evaluation, diverged[-1]["step"] if diverged else None)


def run_names(workdirs: Sequence[str | Path]) -> list[str]:
    """Names the runs by the shortest ends of their paths that are all different.

    Raises:
        UserError: a folder is given twice.
    """
    paths = [absolute(user_path(workdir)) for workdir in workdirs]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"run {path} is given twice")
    length, names = 1, [path.name for path in paths]
    while len(set(names)) < len(names):
        length += 1
        names = ["/".join(path.parts[-length:]) for path in paths]
    return names


def series(records: Sequence[Mapping[str, Any]], field: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps int [n] and values float [n] of a field; null becomes NaN.

    Records without the field, or with something else than a number in it, are passed over.
    """
    numbers = int | float | None
    rows = [(r["step"], r[field]) for r in records if isinstance(r.get(field, ""), numbers)]
    steps = np.array([step for step, _ in rows], np.int64)
    values = np.array([math.nan if value is None else value for _, value in rows], np.float64)
    return steps, values


def running(values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the mean, minimum and maximum [n − window + 1] of each window, without the NaN in it.

    A window of NaN alone gives NaN.
    """
    windows = np.ma.masked_invalid(np.lib.stride_tricks.sliding_window_view(values, window))
    mean, low, high = windows.mean(axis=-1), windows.min(axis=-1), windows.max(axis=-1)
    return mean.filled(np.nan), low.filled(np.nan), high.filled(np.nan)


def draw_curve(
    panel: Axes,
    steps: np.ndarray,
    values: np.ndarray,
    color: ColorType,
    name: str | None = None,
    *,
    dots: bool = False,
) -> None:
    """Draws one curve; a long one as a running mean with a min–max band.

    NaN values are a gap, and a point between two gaps is drawn as a dot. With `dots`, every one is.
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
    """Draws the paper's three panels, and below them the other curves of `CHARTS`."""
    figure = Figure((16, 12), layout="constrained")
    panels = figure.subplots(3, 3, sharex=True)
    draw_paper_panels(panels[0], runs)
    others = [field for field in CHARTS if field not in PAPER]
    for panel, field in zip(panels[1:].flat, others, strict=True):
        for run, color in _colored(runs):
            draw_curve(panel, *run.curve(field), color, dots=field == "mAP")
        finish(panel, CHARTS[field])
    handles, names = panels[0, 0].get_legend_handles_labels()
    columns = max(1, min(len(runs), 180 // (max(map(len, names)) + 8)))
    figure.legend(handles, names, loc="outside lower center", ncols=columns)
    return figure


def draw_paper_panels(panels: Sequence[Axes], runs: Sequence[RunRecords]) -> None:
    """Draws the paper's figure on three axes: loss, L2 norm of the gradient, its fluctuation.

    A cross marks where a run diverged.
    """
    for panel, (field, title) in zip(panels, PAPER.items(), strict=True):
        for run, color in _colored(runs):
            name = run.name
            if run.diverged_at is not None:
                name += f" (diverged at step {run.diverged_at})"
            steps, values = run.curve(field)
            draw_curve(panel, steps, values, color, name)
            if run.diverged_at is not None and len(values):
                panel.plot(steps[-1], values[-1], "x", color=color, markersize=9, mew=2)
        finish(panel, title)


def save(figure: Figure, output: str | Path) -> None:
    """Writes a picture.

    Raises:
        UserError: the picture cannot be written.
    """
    try:
        path = user_path(output)
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = path.suffix.removeprefix(".") or "png"
        write_atomically(path, lambda file: figure.savefig(file, dpi=110, format=kind))
    except (OSError, ValueError) as error:
        raise UserError(f"--output {output} cannot be written: {error}") from error


def _colored(runs: Sequence[RunRecords]) -> list[tuple[RunRecords, ColorType]]:
    colors = itertools.cycle(mpl.color_sequences["tab10" if len(runs) <= 10 else "tab20"])
    return list(zip(runs, colors, strict=False))
