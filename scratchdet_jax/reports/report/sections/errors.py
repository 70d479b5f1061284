"""Error analysis by TIDE's kinds, with the AP that each costs."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from scratchdet_jax.reports.page.tables import Cell, Meter
from scratchdet_jax.reports.page.wording import number
from scratchdet_jax.reports.report.study import RunStudy
from scratchdet_jax.reports.tide import BACKGROUND, FOREGROUND, KINDS, summarize

MEANINGS = {
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
    def measure(cls, study: RunStudy) -> "Errors":
        """Corrects each kind of error alone."""
        return cls(*summarize(study.analysis, len(study.class_names)))

    @staticmethod
    def rows(runs: Mapping[str, "Errors"]) -> list[list[Cell]]:
        """Returns a row per kind: what it costs and how many there are, for each run."""
        costs = [cost for run in runs.values() for cost in run.costs.values()]
        largest = max([0.0, *costs]) or 1.0
        single = len(runs) == 1
        columns: list[list[Cell]] = [
            ["kind", *KINDS, "all false detections", "all objects not found"]
        ]
        for name, run in runs.items():
            shares = [run.costs[kind] for kind in KINDS]
            figures = (*shares, run.false_positives, run.false_negatives)
            head = "cost" if single else f"{name}: cost"
            columns.append([head, *(number(figure, 3) for figure in figures)])
            if single:
                columns.append(["", *(Meter(share / largest) for share in shares), "", ""])
            columns.append(["errors", *(f"{run.counts[kind]:,}" for kind in KINDS), "", ""])
        return [list(row) for row in zip(*columns, strict=True)]

    def sentence(self) -> str:
        """Returns the AP, and which kind of error costs the most."""
        if math.isnan(self.ap):
            return "no AP, because no object counts."
        kind = max(KINDS, key=lambda kind: self.costs[kind])
        cost = self.costs[kind]
        if cost < 0.0005:
            return f"AP {self.ap:.3f}; no kind of error alone costs anything."
        return f"AP {self.ap:.3f}; errors of the kind {kind} cost the most, {cost:.3f}."
