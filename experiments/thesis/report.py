"""The results of the runs: verdicts on the paper's orderings, tables, figure."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.thesis.plan import Ordering, Row, Study, run_folder
from scratchdet_jax.errors import UserError
from scratchdet_jax.reports.curves import draw_paper_panels, finish, read_run, running, save, series

# 97.5 % quantiles of Student's t by degrees of freedom, from 1.
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
_PLATEAU_UPDATES = 20  # whose mean loss tells whether a run has left the plateau


class Outcome(NamedTuple):
    """The result of one run; a diverged run counts as AP 0.

    Attributes:
        figures: scores in [0, 1] of the last evaluation by field; empty if the run diverged.
        per_class: its AP by class name.
        diverged_at: the step at which the run diverged, or None.
        left_plateau_at: the update at which the mean classification loss first fell below that of
            a constant answer; None if it never did.
        gradient_norm: mean over the second half of the run; None if it diverged.
        fluctuation: mean change of the gradient norm per step / gradient_norm; None if it diverged.
    """

    figures: dict[str, float]
    per_class: dict[str, float]
    diverged_at: int | None
    left_plateau_at: int | None
    gradient_norm: float | None
    fluctuation: float | None

    def score(self, figure: str) -> float:
        """Returns the score of a field or class; 0 for a diverged run."""
        return (self.figures | self.per_class)[figure] if self.figures else 0.0


Outcomes = dict[str, dict[int, Outcome]]  # by the row's key and the seed


def read_outcome(workdir: Path, steps: int, plateau: float | None = None) -> Outcome | None:
    """Returns the result of a run from its metrics.jsonl; None if it is not finished.

    Args:
        workdir: the folder of the run.
        steps: its length.
        plateau: a classification loss below that of a constant answer, or None.
    """
    if not (workdir / "metrics.jsonl").exists():
        return None
    try:
        run = read_run(workdir, workdir.name)
    except UserError:  # stopped before its first record
        return None
    if run.diverged_at is not None:
        return Outcome({}, {}, run.diverged_at, None, None, None)
    if not run.eval or run.eval[-1]["step"] != steps:
        return None
    half = [record for record in run.train if record["step"] > steps // 2]
    norm = statistics.fmean(record["gradient_norm"] for record in half)
    change = statistics.fmean(record["gradient_fluctuation"] for record in half)
    last = run.eval[-1]
    figures = {name: value for name, value in last.items() if isinstance(value, float)}
    relative = change / norm if norm else None
    return Outcome(figures, last["AP"], None, _left_at(run.train, plateau), norm, relative)


def _left_at(records: Sequence[dict[str, Any]], plateau: float | None) -> int | None:
    """Finds the step at which the running mean of the class loss first falls below `plateau`."""
    steps, losses = series(records, "loss_classification")
    if plateau is None or len(losses) < _PLATEAU_UPDATES:
        return None
    below = running(losses, _PLATEAU_UPDATES)[0] < plateau
    return int(steps[_PLATEAU_UPDATES - 1 + below.argmax()]) if below.any() else None


def compare(
    above: dict[int, float], below: dict[int, float]
) -> tuple[str, float, float | None] | None:
    """Judges whether `above` beats `below`: the verdict, the mean difference, and its noise.

    The scores are by seed. The noise is the half width of the 95 % interval of the mean of the
    differences between runs with the same seed (Student's t); a smaller difference shows neither
    order. With one seed there is no noise, and the verdict says so. Without a common seed the
    result is None.
    """
    differences = [above[seed] - below[seed] for seed in above if seed in below]
    if not differences:
        return None
    difference = statistics.fmean(differences)
    freedom = len(differences) - 1
    if freedom == 0:
        word = "as published" if difference > 0 else "not as published"
        return f"{word}, but one seed shows no noise", difference, None
    quantile = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else 1.96 + 2.4 / freedom
    noise = quantile * statistics.stdev(differences) / math.sqrt(len(differences))
    if difference > noise:
        return "holds", difference, noise
    return ("does not hold" if difference < -noise else "within the noise"), difference, noise


def judge(ordering: Ordering, outcomes: Outcomes) -> tuple[str, float, float | None] | None:
    """Compares the rows of an ordering; None if they have no finished run in common."""
    above, below = (
        {seed: run.score(ordering.figure) for seed, run in outcomes.get(key, {}).items()}
        for key in (ordering.above, ordering.below)
    )
    return compare(above, below)


def columns(study: Study, outcomes: Outcomes) -> dict[str, str]:
    """Returns titles of the tables' columns of scores, by figure."""
    classes: dict[str, float] = {}
    for runs in outcomes.values() if study.per_class else ():
        for run in runs.values():
            classes |= run.per_class  # empty if the run diverged
    return study.figures | {name: name for name in classes}


def table(study: Study, outcomes: Outcomes, images: int) -> str:
    """Returns the tables and the verdicts as Markdown."""
    device = jax.devices()[0].device_kind
    seeds = sorted({seed for runs in outcomes.values() for seed in runs})
    scores = columns(study, outcomes)
    titles = ["", "rate", *scores.values(), "gradient norm", "fluctuation / norm", "published mAP"]
    if study.plateau is not None:
        titles.append("plateau left at update")
    header = "| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|"
    lines = [
        f"{images:,} images a run, seeds {', '.join(map(str, seeds))}; {len(jax.devices())} × "
        f"{device}, JAX {jax.__version__}. Mean ± standard deviation over the seeds; a diverged "
        "run counts as AP 0. Gradient figures: second half of the run."
    ]
    for title, rows in study.tables.items():
        lines += ["", f"### {title}", "", header]
        for row in rows:
            runs = [run for _, run in sorted(outcomes.get(row.key, {}).items())]
            line = _line(row, runs, tuple(scores))
            lines.append(line if study.plateau is None else f"{line} {_left(runs)} |")
    lines += [
        "",
        "### The paper's orderings",
        "",
        "| claim | figure | published | mean difference here | noise (95 %) | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for ordering in study.orderings:
        verdict, difference, noise = judge(ordering, outcomes) or ("not yet run", None, None)
        shown = "–" if difference is None else f"{difference:+.3f}"
        margin = "–" if noise is None else f"±{noise:.3f}"
        lines.append(
            f"| {ordering.claim} | {scores[ordering.figure]} | {ordering.published} | {shown} | "
            f"{margin} | {verdict} |"
        )
    return "\n".join(lines) + "\n"


def _line(row: Row, runs: Sequence[Outcome], figures: Sequence[str]) -> str:
    cells = [_mean_and_deviation([run.score(figure) for run in runs]) for figure in figures]
    stopped = [run.diverged_at for run in runs if run.diverged_at is not None]
    if stopped:
        steps = ", ".join(map(str, stopped))
        cells[0] += f" (diverged: {len(stopped)} of {len(runs)}, at step {steps})"
    for values in ([run.gradient_norm for run in runs], [run.fluctuation for run in runs]):
        cells.append(_mean_and_deviation([value for value in values if value is not None]))
    return "| " + " | ".join([row.title, f"{row.rate:g}", *cells, row.published]) + " |"


def _left(runs: Sequence[Outcome]) -> str:
    """Returns when each seed left the plateau."""
    left = [run.left_plateau_at for run in runs]
    return ", ".join("–" if step is None else str(step) for step in left) or "–"


def _mean_and_deviation(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"


def choice_table(study: Study, outcomes: Outcomes) -> str:
    """Returns the runs that choose a learning rate as Markdown."""
    figure, title = next(iter(study.figures.items()))
    lines = [f"| | rate | {title} |", "|---|---|---|"]
    for row in study.candidates:
        for run in outcomes.get(row.key, {}).values():
            diverged = "" if run.diverged_at is None else f" (diverged at step {run.diverged_at})"
            lines.append(f"| {row.title} | {row.rate:g} | {run.score(figure):.3f}{diverged} |")
    return "\n".join(lines) + "\n"


def draw(study: Study, outcomes: Outcomes, output: Path) -> None:
    """Draws the paper's panels and the score of the first table's first seed, and all scores."""
    first = next(iter(study.tables.values()))
    runs = [
        read_run(run_folder(output, row.key, min(outcomes[row.key])), f"{row.title}, {row.rate:g}")
        for row in first
        if outcomes.get(row.key)
    ]
    runs = [run for run in runs if run.diverged_at is None]  # it would set the scale of the panels
    scores = columns(study, outcomes)
    bars = [(rows, figure) for rows in study.tables.values() for figure in scores]
    wide = max(4, len(bars))
    picture = Figure((5 * wide, 9), layout="constrained")
    panels = picture.subplots(2, wide)
    if runs:
        draw_paper_panels(panels[0, :3], runs)
        panels[0, 0].legend(fontsize=8)
        field, title = next(iter(study.figures.items()))
        for run in runs:
            panels[0, 3].plot(*series(run.eval, field), "o-", markersize=3)
        finish(panels[0, 3], title)
    for panel, (rows, name) in zip(panels[1], bars, strict=False):
        _bars(panel, rows, outcomes, name, scores[name])
    for panel in (*panels[0, 4:], *panels[1, len(bars) :]):
        panel.axis("off")
    save(picture, output / "figure.png")


def _bars(panel: Axes, rows: Sequence[Row], outcomes: Outcomes, figure: str, title: str) -> None:
    """Draws the mean of each row as a bar, and every seed as a point."""
    for place, row in enumerate(rows):
        values = [run.score(figure) for run in outcomes.get(row.key, {}).values()]
        if values:
            panel.bar(place, statistics.fmean(values), width=0.7, color="tab:blue", alpha=0.5)
            panel.plot([place] * len(values), values, "o", color="black", markersize=3)
    labels = [f"{row.title}\n{row.rate:g}" for row in rows]
    panel.set_xticks(range(len(rows)), labels, rotation=30, ha="right", fontsize=8)
    panel.set_title(title, fontsize=10)
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3, axis="y")


def write_report(study: Study, outcomes: Outcomes, images: int, output: Path) -> str:
    """Writes table.md, results.json and figure.png; returns the table."""
    text = table(study, outcomes, images)
    (output / "table.md").write_text(text, encoding="utf-8")
    record: dict[str, Any] = {
        row.key: {
            "rate": row.rate,
            "seeds": {seed: run._asdict() for seed, run in outcomes.get(row.key, {}).items()},
        }
        for row in study.rows()
    }
    record = {"train_images": images, "rows": record}
    (output / "results.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    draw(study, outcomes, output)
    return text
