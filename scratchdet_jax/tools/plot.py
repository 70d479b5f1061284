"""Curves of one or several runs in one picture, from the metrics.jsonl of their work folders.

python -m scratchdet_jax.tools.plot RUN [RUN …] --output=curves.png
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from scratchdet_jax.errors import UserError

# Curves with more points than this are drawn as a running mean with a min–max band.
_POINTS_PER_CURVE = 150


class Run(NamedTuple):
    """The records of one run, each kind in order of step.

    Attributes:
        name: the curve's name.
        train: records of kind "train".
        eval: records of kind "eval".
    """

    name: str
    train: list[dict[str, Any]]
    eval: list[dict[str, Any]]


def read_run(workdir: str | Path, name: str) -> Run:
    """Reads the metrics.jsonl of a work folder.

    A run that was resumed has some steps twice: the later record counts. A truncated last line
    (the run was killed, or is writing it now) is skipped with a warning on the standard error.

    Raises:
        UserError: the file is missing, has no record, or is garbled.
    """
    path = Path(workdir) / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(
            f"{str(path)!r} cannot be read ({error.strerror}): give the work folder of a run."
        ) from error
    records: dict[str, dict[int, dict[str, Any]]] = {"train": {}, "eval": {}}
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
                f"{path}, line {number}: not a record with 'kind' and 'step': the file is garbled."
            ) from error
        if kind in records:
            records[kind][step] = record
    train, evaluation = ([kept[s] for s in sorted(kept)] for kept in records.values())
    if not train and not evaluation:
        raise UserError(f"{str(path)!r} has no record yet: nothing to plot.")
    return Run(name, train, evaluation)


def run_names(workdirs: Sequence[str | Path]) -> list[str]:
    """Names the runs by their folders, with as much of the path before as tells them apart.

    Raises:
        UserError: a folder is given twice.
    """
    paths = [Path(workdir).resolve() for workdir in workdirs]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"Run {str(path)!r} is given twice.")
    longest = max(len(path.parts) for path in paths)
    for length in range(1, longest + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def series(records: Sequence[dict[str, Any]], field: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps int [n], values float [n]) of the records that have the field; null is NaN."""
    rows = [(record["step"], record[field]) for record in records if field in record]
    steps = np.array([step for step, _ in rows], np.int64)
    values = np.array([math.nan if value is None else value for _, value in rows], np.float64)
    return steps, values


def running(values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, minimum and maximum [n − window + 1] over each stretch of `window` values.

    Stretches of NaN give NaN; other NaN are left out.
    """
    stretches = np.lib.stride_tricks.sliding_window_view(values, window)
    finite = np.isfinite(stretches)
    count = finite.sum(axis=-1)
    total = np.where(finite, stretches, 0.0).sum(axis=-1)
    low = np.where(finite, stretches, np.inf).min(axis=-1)
    high = np.where(finite, stretches, -np.inf).max(axis=-1)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean, np.where(count > 0, low, np.nan), np.where(count > 0, high, np.nan)


def draw(runs: Sequence[Run], output: str | Path) -> None:
    """Draws loss, its parts, AP, gradient norm, its fluctuation, and learning rate over the steps.

    The fluctuation is |‖g_t‖ − ‖g_{t−1}‖| of the gradient norms of successive records, as in the
    paper's figure of the BatchNorm ablation; the panel says how many steps apart those are.

    Raises:
        UserError: the picture cannot be written.
    """
    figure, panels = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    (loss, parts, average_precision), (norm, fluctuation, rate) = panels
    colors = plt.get_cmap("tab10" if len(runs) <= 10 else "tab20").colors
    apart: set[int] = set()
    for i, run in enumerate(runs):
        color = colors[i % len(colors)]
        _curve(loss, *series(run.train, "loss"), color, run.name)
        _curve(parts, *series(run.train, "loss_classification"), color, run.name)
        _curve(parts, *series(run.train, "loss_localization"), color, None, "--")
        steps, norms = series(run.train, "gradient_norm")
        _curve(norm, steps, norms, color, run.name)
        _curve(fluctuation, steps[1:], np.abs(np.diff(norms)), color, run.name)
        apart.update(np.diff(steps).tolist())
        rate.plot(*series(run.train, "learning_rate"), color=color, label=run.name)
        average_precision.plot(
            *series(run.eval, "mAP"), color=color, label=run.name, marker="o", markersize=3
        )
    between = "steps" if apart <= {1} else f"records ({min(apart)}+ steps)"
    titles = {
        loss: "loss",
        parts: "loss: classification (solid), localization (dashed)",
        average_precision: "mAP",
        norm: "gradient L2 norm",
        fluctuation: f"|change of gradient norm| between {between}",
        rate: "learning rate",
    }
    for panel, title in titles.items():
        _finish(panel, title)
    figure.legend(
        *loss.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(runs), 4)
    )
    try:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, dpi=110)
    except (OSError, ValueError) as error:
        raise UserError(f"Picture {str(output)!r} cannot be written: {error}.") from error
    finally:
        plt.close(figure)


def _curve(
    panel: Axes,
    steps: np.ndarray,
    values: np.ndarray,
    color: tuple[float, ...],
    name: str | None,
    style: str = "-",
) -> None:
    """One curve; a long one as a running mean with a min–max band."""
    window = max(1, len(values) // _POINTS_PER_CURVE)
    if window > 1:
        mean, low, high = running(values, window)
        steps = steps[window // 2 :][: len(mean)]
        panel.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
        values = mean
    panel.plot(steps, values, style, color=color, label=name, linewidth=1.3)


def _finish(panel: Axes, title: str) -> None:
    panel.set_title(title, fontsize=11)
    panel.set_xlabel("step")
    panel.grid(alpha=0.3)
    if not any(np.isfinite(line.get_ydata()).any() for line in panel.lines):
        panel.text(0.5, 0.5, "no data", ha="center", va="center", transform=panel.transAxes)
    else:
        panel.set_ylim(bottom=0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tool; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m scratchdet_jax.tools.plot",
        description="Draws the curves of runs from the metrics.jsonl of their work folders.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="work folder of a run")
    parser.add_argument("--output", required=True, help="picture to write, e.g. curves.png")
    options = parser.parse_args(arguments)
    try:
        names = run_names(options.runs)
        runs = [read_run(run, name) for run, name in zip(options.runs, names, strict=True)]
        draw(runs, options.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
