"""Error analysis by TIDE's kinds, with the AP that each costs."""

import html
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from scratchdet_jax.reports.page.layout import Cell, Meter, html_table, soft, text_table
from scratchdet_jax.reports.page.wording import number
from scratchdet_jax.reports.report.study import Study
from scratchdet_jax.reports.tide import BACKGROUND, FOREGROUND, KINDS, summarize

_MEANING = {
    "classification": f"IoU from {FOREGROUND} with an object of another class",
    "localization": f"right class, IoU from {BACKGROUND} to {FOREGROUND}",
    "both": f"another class, IoU from {BACKGROUND} to {FOREGROUND}",
    "duplicate": f"right class, IoU from {FOREGROUND}, but the object is found already",
    "background": f"IoU below {BACKGROUND} with every object",
    "missed": "object without a detection that a right class or a better box would correct",
}


class Errors(NamedTuple):
    """The fields of `tide.Tide`."""

    ap: float
    costs: dict[str, float]
    counts: dict[str, int]
    false_positives: float
    false_negatives: float

    @classmethod
    def measure(cls, study: Study) -> "Errors":
        """Corrects each kind of error alone."""
        return cls(*summarize(study.analysis, len(study.class_names)))

    @staticmethod
    def to_text(runs: Mapping[str, "Errors"]) -> Iterator[str]:
        """The cost of each kind."""
        yield "\nWHAT THE ERRORS COST (TIDE: AP at IoU 0.5 gained without the errors of a kind)"
        yield from text_table(_table(runs, meters=False))
        yield from (f"  {line}" for line in _sentences(runs))

    @staticmethod
    def to_html(runs: Mapping[str, "Errors"]) -> Iterator[str]:
        """The table and its reading."""
        yield soft(
            "TIDE: the AP at IoU 0.5 that would be gained if the errors of one kind alone were "
            "corrected. The costs do not add up: correcting one kind uncovers others. All "
            "detections count, also those with a low score."
        )
        for line in _sentences(runs):
            yield f"<p>{html.escape(line)}</p>"
        yield html_table(_table(runs))
        meanings = "".join(f"<li><b>{kind}</b>: {text}</li>" for kind, text in _MEANING.items())
        yield f'<ul class="files">{meanings}</ul>'


def _sentences(runs: Mapping[str, Errors]) -> Iterator[str]:
    for name, errors in runs.items():
        start = f"{name}: " if len(runs) > 1 else ""
        if math.isnan(errors.ap):
            yield f"{start}no AP, because no object counts."
            continue
        kind = max(KINDS, key=lambda kind: errors.costs[kind])
        cost = errors.costs[kind]
        if cost < 0.0005:
            yield f"{start}AP {errors.ap:.3f}; no kind of error alone costs anything."
        else:
            most = f"errors of the kind {kind} cost the most, {cost:.3f}"
            yield f"{start}AP {errors.ap:.3f}; {most}."


def _table(runs: Mapping[str, Errors], meters: bool = True) -> list[list[Cell]]:
    """A row per kind: what it costs and how many there are, for each run."""
    largest = max([0.0, *(cost for run in runs.values() for cost in run.costs.values())]) or 1.0
    single = len(runs) == 1
    head: list[Cell] = ["kind"]
    for name in runs:
        cost = "cost" if single else f"{name}: cost"
        head += [cost, *([""] if meters and single else []), "errors"]
    rows: list[list[Cell]] = [head]
    for kind in KINDS:
        row: list[Cell] = [kind]
        for run in runs.values():
            bar = [Meter(run.costs[kind] / largest)] if meters and single else []
            row += [number(run.costs[kind], 3), *bar, f"{run.counts[kind]:,}"]
        rows.append(row)
    totals = {
        "all false detections": lambda run: run.false_positives,
        "all objects not found": lambda run: run.false_negatives,
    }
    for title, read in totals.items():
        row = [title]
        for run in runs.values():
            row += [number(read(run), 3), *([""] if meters and single else []), ""]
        rows.append(row)
    return rows
