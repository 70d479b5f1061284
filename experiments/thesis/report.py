"""The results of the runs: verdicts on the paper's orderings, tables, figure."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from matplotlib.axes import Axes

from experiments.thesis.plan import COMPARED, RATES, Ordering, Row, orderings, rows, run_folder
from scratchdet_jax.errors import UserError
from scratchdet_jax.run.reading import read_run
from scratchdet_jax.tools import plot

# 97.5 % quantiles of Student's t by degrees of freedom, from 1.
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


class Outcome(NamedTuple):
    """The result of one run; a diverged run counts as AP 0.

    Attributes:
        ap50: COCO's AP at IoU 0.5.
        ap_small: COCO's AP of boxes smaller than 32² pixels.
        diverged_at: the step at which the run diverged, or None.
        gradient_norm: mean over the second half of the run; None if it diverged.
        fluctuation: mean change of the gradient norm per step / gradient_norm; None if it diverged.
    """

    ap50: float
    ap_small: float
    diverged_at: int | None
    gradient_norm: float | None
    fluctuation: float | None


Outcomes = dict[str, dict[int, Outcome]]  # by the row's key and the seed


def read_outcome(workdir: Path, steps: int) -> Outcome | None:
    """The result of a run from its metrics.jsonl; None if it is not finished."""
    if not (workdir / "metrics.jsonl").exists():
        return None
    try:
        run = read_run(workdir, workdir.name)
    except UserError:  # stopped before its first record
        return None
    if run.diverged_at is not None:
        return Outcome(0.0, 0.0, run.diverged_at, None, None)
    if not run.eval or run.eval[-1]["step"] != steps:
        return None
    half = [record for record in run.train if record["step"] > steps // 2]
    norm = statistics.fmean(record["gradient_norm"] for record in half)
    change = statistics.fmean(record["gradient_fluctuation"] for record in half)
    last = run.eval[-1]
    return Outcome(last["AP50"], last["APs"], None, norm, change / norm if norm else None)


def compare(above: Sequence[float], below: Sequence[float]) -> tuple[str, float, float | None]:
    """Whether `above` scores higher than `below`: the verdict, the difference, and its noise.

    The noise is the half width of the 95 % interval of the difference of means (Student's t,
    pooled variance); a smaller difference shows neither order. With one seed there is no noise, and
    the verdict says so.
    """
    difference = statistics.fmean(above) - statistics.fmean(below)
    freedom = len(above) + len(below) - 2
    if min(len(above), len(below)) < 2:
        word = "as published" if difference > 0 else "not as published"
        return f"{word}, but one seed shows no noise", difference, None
    squares = sum(
        (value - statistics.fmean(values)) ** 2 for values in (above, below) for value in values
    )
    quantile = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else 1.96 + 2.4 / freedom
    noise = quantile * math.sqrt(squares / freedom * (1 / len(above) + 1 / len(below)))
    if difference > noise:
        return "holds", difference, noise
    return ("does not hold" if difference < -noise else "within the noise"), difference, noise


def judge(ordering: Ordering, outcomes: Outcomes) -> tuple[str, float, float | None] | None:
    """`compare` for the rows of an ordering; None if one of them has no finished run."""

    def values(keys: tuple[str, ...]) -> list[float]:
        series = [
            [getattr(outcome, ordering.figure) for outcome in outcomes[key].values()]
            for key in keys
            if outcomes.get(key)
        ]
        return max(series, key=statistics.fmean) if len(series) == len(keys) else []

    above, below = values(ordering.above), values(ordering.below)
    return compare(above, below) if above and below else None


def table(outcomes: Outcomes, images: int) -> str:
    """The two tables and the verdicts as Markdown."""
    device = jax.devices()[0].device_kind
    seeds = sorted({seed for runs in outcomes.values() for seed in runs})
    header = (
        "| | rate | AP50 | AP small | gradient norm | fluctuation / norm | published mAP |\n"
        "|---|---|---|---|---|---|---|"
    )
    lines = [
        f"{images:,} images a run, seeds {', '.join(map(str, seeds))}; {len(jax.devices())} × "
        f"{device}, JAX {jax.__version__}. Mean ± standard deviation over the seeds; a diverged "
        "run counts as AP 0. Gradient figures: second half of the run.",
        "",
        "### Where BatchNorm is (narrow VGG-16)",
        "",
        header,
    ]
    lines += [_line(row, outcomes) for row in rows() if row.key.startswith("bn_")]
    lines += ["", "### The first layers (narrow ResNet-18, BN in both)", "", header]
    lines += [_line(row, outcomes) for row in rows() if row.key.startswith("stem_")]
    lines += [
        "",
        "### The paper's orderings",
        "",
        "| claim | published | difference of AP here | noise (95 %) | verdict |",
        "|---|---|---|---|---|",
    ]
    for ordering in orderings():
        judged = judge(ordering, outcomes)
        verdict, difference, noise = judged or ("not yet run", None, None)
        shown = "–" if difference is None else f"{difference:+.3f}"
        margin = "–" if noise is None else f"±{noise:.3f}"
        lines.append(
            f"| {ordering.claim} | {ordering.published} | {shown} | {margin} | {verdict} |"
        )
    return "\n".join(lines) + "\n"


def _line(row: Row, outcomes: Outcomes) -> str:
    runs = list(outcomes.get(row.key, {}).values())
    stopped = [run.diverged_at for run in runs if run.diverged_at is not None]
    cells = [row.title, f"{RATES[row.rate]:g}"]
    for field in ("ap50", "ap_small", "gradient_norm", "fluctuation"):
        values = [v for v in (getattr(run, field) for run in runs) if v is not None]
        cells.append(_mean_and_deviation(values))
    if stopped:
        steps = ", ".join(map(str, stopped))
        cells[2] += f" (diverged: {len(stopped)} of {len(runs)}, at step {steps})"
    return "| " + " | ".join([*cells, row.published]) + " |"


def _mean_and_deviation(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"


def draw(outcomes: Outcomes, output: Path) -> None:
    """Draws the paper's three panels at both rates (first seed), and the AP of every row."""
    figure, panels = plot.plt.subplots(3, 3, figsize=(16, 12), layout="constrained")
    for line, rate in zip(panels, COMPARED, strict=False):
        chosen = [row for row in rows() if row.rate == rate and row.key.startswith("bn_")]
        runs = [
            read_run(run_folder(output, row, min(outcomes[row.key])), row.title)
            for row in chosen
            if outcomes.get(row.key)
        ]
        if runs:
            plot.draw_paper_panels(line, runs)
            line[0].legend(fontsize=8)
        line[0].set_ylabel(f"learning rate {RATES[rate]:g}")
    by_norm = {
        f"{row.title}\n{RATES[row.rate]:g}": row.key for row in rows() if row.key.startswith("bn_")
    }
    by_stem = {row.title: row.key for row in rows() if row.key.startswith("stem_")}
    _bars(panels[2, 0], by_norm, outcomes, "ap50", "AP50: where BatchNorm is, and the rate")
    _bars(panels[2, 1], by_stem, outcomes, "ap50", "AP50: first layers")
    _bars(panels[2, 2], by_stem, outcomes, "ap_small", "AP of small objects: first layers")
    plot.save(figure, output / "figure.png")


def _bars(panel: Axes, keys: dict[str, str], outcomes: Outcomes, field: str, title: str) -> None:
    """Draws the mean of each row as a bar, and every seed as a point."""
    for place, key in enumerate(keys.values()):
        values = [getattr(run, field) for run in outcomes.get(key, {}).values()]
        if values:
            panel.bar(place, statistics.fmean(values), width=0.7, color="tab:blue", alpha=0.5)
            panel.plot([place] * len(values), values, "o", color="black", markersize=3)
    panel.set_xticks(range(len(keys)), list(keys), rotation=30, ha="right", fontsize=8)
    panel.set_title(title, fontsize=10)
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3, axis="y")


def write_report(outcomes: Outcomes, images: int, output: Path) -> str:
    """Writes table.md, results.json and figure.png; returns the table."""
    text = table(outcomes, images)
    (output / "table.md").write_text(text, encoding="utf-8")
    record: dict[str, Any] = {
        key: {seed: outcome._asdict() for seed, outcome in runs.items()}
        for key, runs in outcomes.items()
    }
    record = {"train_images": images, "rates": RATES, "runs": record}
    (output / "results.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    draw(outcomes, output)
    return text
