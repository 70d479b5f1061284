"""Average precision per class, beside that of a constant box, and precision–recall curves."""

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from scratchdet_jax.evaluation import coco, voc
from scratchdet_jax.reports.baseline import constant_box
from scratchdet_jax.reports.page.charts import Curve, lines_svg, run_style
from scratchdet_jax.reports.page.layout import (
    Bold,
    Cell,
    Meter,
    Score,
    details,
    figure,
    html_table,
    soft,
    text_table,
)
from scratchdet_jax.reports.page.wording import percent
from scratchdet_jax.reports.report.naming import common_classes, common_note, legend, value
from scratchdet_jax.reports.report.study import Study
from scratchdet_jax.reports.tide import CORRECT

_RECALLS = np.arange(101) / 100
_EACH = 12  # more classes than this are drawn in one chart, and each only on demand
_SMALL = (260, 180)


class Precision(NamedTuple):
    """Average precision of a run; None where there is no ground truth that counts.

    Attributes:
        label: the rule of the metric of the run.
        mean: mAP by it.
        per_class: AP by it.
        strict_mean: COCO's AP, IoU 0.5:0.95.
        strict: the same by class.
        constant_mean: mAP of a constant box, by the rule of the run.
        constant: the same by class.
        objects: ground truth that counts, by class.
        threshold: of the two fields below.
        precision: the share of the class's detections from the threshold on that are correct.
        recall: the share of the class's objects that these find.
        curves: the best precision at recall 0, 0.01, …, 1, at IoU 0.5 by VOC's matching.
    """

    label: str
    mean: float | None
    per_class: dict[str, float | None]
    strict_mean: float | None
    strict: dict[str, float | None]
    constant_mean: float | None
    constant: dict[str, float | None]
    objects: dict[str, int]
    threshold: float
    precision: dict[str, float | None]
    recall: dict[str, float | None]
    curves: dict[str, list[float] | None]

    @classmethod
    def measure(cls, study: Study) -> "Precision":
        """Scores the detections."""
        evaluation, names = study.evaluation, study.class_names
        results, truth = evaluation.results, evaluation.ground_truth
        metric = study.config.eval.metric
        constant = constant_box(truth, evaluation.sizes, names, metric).record()
        curves = voc.curves(evaluation.detections, truth, names)
        found, flat, kind, _, ignored, _, _ = study.analysis
        shown = (found.scores >= study.threshold) & ~ignored
        size = len(names) + 1
        guessed = np.bincount(found.labels[shown], minlength=size)
        right = np.bincount(found.labels[shown & (kind == CORRECT)], minlength=size)
        objects = np.bincount(flat.labels[~flat.ignore], minlength=size)

        def shares(counts: np.ndarray) -> dict[str, float | None]:
            return {
                name: float(right[i] / counts[i]) if counts[i] else None
                for i, name in enumerate(names, start=1)
            }

        return cls(
            results["label"],
            results["mAP"],
            results["AP"],
            results["mAP"] if metric == "coco" else results[coco.MAP_KEY],
            study.strict,
            constant["mAP"],
            constant["AP"],
            {name: int(objects[i]) for i, name in enumerate(names, start=1)},
            study.threshold,
            shares(guessed),
            shares(objects),
            {
                name: curve and voc.best_precision(curve, _RECALLS).round(4).tolist()
                for name, curve in curves.items()
            },
        )

    @staticmethod
    def to_text(runs: Mapping[str, "Precision"]) -> Iterator[str]:
        """AP by class."""
        yield "\nAVERAGE PRECISION"
        if common_classes(_class_names(runs)):
            yield from text_table(_table(runs, meters=False))
        else:
            yield "  the runs have no class in common"

    @staticmethod
    def to_html(runs: Mapping[str, "Precision"]) -> Iterator[str]:
        """The table and the curves."""
        first = next(iter(runs.values()))
        yield common_note(_class_names(runs))
        if not common_classes(_class_names(runs)):
            return
        yield soft(html.escape(_rules(runs)))
        yield html_table(_table(runs))
        empty = [name for name in common_classes(_class_names(runs)) if not first.objects[name]]
        if empty:
            yield soft(html.escape(f"No ground truth of {', '.join(empty)}: no AP."))
        yield "<h3>Precision and recall</h3>"
        yield soft(
            "IoU 0.5. Horizontal: recall; vertical: the best precision at this or a higher recall."
        )
        yield from _charts(runs)


def _class_names(runs: Mapping[str, Precision]) -> dict[str, list[str]]:
    return {name: list(run.objects) for name, run in runs.items()}


def _rules(runs: Mapping[str, Precision]) -> str:
    labels = dict.fromkeys(run.label for run in runs.values())
    threshold = next(iter(runs.values())).threshold
    text = f"AP: {' or '.join(labels)}. A constant box is the same box per class on every image. "
    if len(runs) == 1:
        text += f"Precision and recall are those of the detections with a score from {threshold:g}."
    return text


def _table(runs: Mapping[str, Precision], meters: bool = True) -> list[list[Cell]]:
    """A row per class that all runs have, then the mean."""
    names = common_classes(_class_names(runs))
    first = next(iter(runs.values()))
    if len(runs) > 1:
        head = ["class", "objects", *runs, "constant box"]
        means = [_mean(run.per_class, names) for run in runs.values()]
        rows = [
            [
                name,
                f"{first.objects[name]:,}",
                *(Score(value(run.per_class[name])) for run in runs.values()),
                Score(value(first.constant[name])),
            ]
            for name in names
        ]
        last = [
            Bold("mean of these classes"),
            f"{sum(first.objects[name] for name in names):,}",
            *map(Score, means),
            Score(_mean(first.constant, names)),
        ]
        return [head, *rows, last]
    head = ["class", "objects", "AP", *([""] if meters else []), "AP@.5:.95", "constant box"]
    rows = [
        [
            name,
            f"{first.objects[name]:,}",
            Score(value(first.per_class[name])),
            *([Meter(first.per_class[name] or 0.0)] if meters else []),
            Score(value(first.strict[name])),
            Score(value(first.constant[name])),
            percent(value(first.precision[name])),
            percent(value(first.recall[name])),
        ]
        for name in names
    ]
    last = [
        Bold("mean"),
        f"{sum(first.objects.values()):,}",
        Score(value(first.mean)),
        *([Meter(first.mean or 0.0)] if meters else []),
        Score(value(first.strict_mean)),
        Score(value(first.constant_mean)),
        percent(_mean(first.precision, names)),
        percent(_mean(first.recall, names)),
    ]
    return [[*head, "precision", "recall"], *rows, last]


def _mean(figures: Mapping[str, float | None], names: Sequence[str]) -> float:
    defined = [figures[name] for name in names if figures[name] is not None]
    return float(np.mean(defined)) if defined else float("nan")


def _charts(runs: Mapping[str, Precision]) -> Iterator[str]:
    names = common_classes(_class_names(runs))
    known = [name for name in names if any(run.curves[name] for run in runs.values())]
    if not known:
        yield soft("No curves: no class has ground truth.")
        return
    yield legend(runs)
    each = "".join(_class_chart(name, runs) for name in known)
    small = f'<div class="charts small">{each}</div>'
    if len(known) <= _EACH:
        yield small
        return
    curves = []
    if len(runs) == 1:
        run = next(iter(runs.values()))
        curves += [_curve(run.curves[name], "faint", name) for name in known if run.curves[name]]
    for n, (name, run) in enumerate(runs.items()):
        own = [run.curves[c] for c in known if run.curves[c]]
        curves.append(_curve(np.mean(own, axis=0).tolist(), run_style(n), f"{name}: mean"))
    chart = lines_svg(curves, "Precision by recall: mean of the classes", across=(0, 1), top=1.0)
    caption = "The mean of the classes" + (", and each class in grey." if len(runs) == 1 else ".")
    yield figure(chart, caption, "chart")
    yield details(f"each of {len(known)} classes", small)


def _class_chart(name: str, runs: Mapping[str, Precision]) -> str:
    curves = [
        _curve(run.curves[name], run_style(n), run_name)
        for n, (run_name, run) in enumerate(runs.items())
        if run.curves[name]
    ]
    title = f"Precision by recall of {name}"
    return figure(lines_svg(curves, title, across=(0, 1), top=1.0, size=_SMALL), name)


def _curve(precision: Sequence[float], style: str, name: str) -> Curve:
    return Curve(_RECALLS.tolist(), precision, style, name)
