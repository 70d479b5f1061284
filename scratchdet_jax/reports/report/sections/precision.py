"""Average precision per class, beside that of a constant box, and precision–recall curves."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scratchdet_jax.evaluation import coco, voc
from scratchdet_jax.reports.baseline import constant_box
from scratchdet_jax.reports.page.charts import (
    SIZE,
    colour,
    new_chart,
    run_colour,
    set_tooltip,
    to_svg,
)
from scratchdet_jax.reports.page.tables import Bold, Cell, Meter, Score
from scratchdet_jax.reports.page.wording import percent
from scratchdet_jax.reports.report.study import RunStudy
from scratchdet_jax.reports.tide import CORRECT

_RECALLS = np.arange(101) / 100
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
    def measure(cls, study: RunStudy) -> "Precision":
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
    def rows(runs: Mapping[str, "Precision"]) -> list[list[Cell]]:
        """Returns AP by class, for the classes that all runs have, and the mean."""
        names = common_classes(runs)
        first = next(iter(runs.values()))
        objects = [f"{first.objects[name]:,}" for name in names]
        columns: list[list[Cell]] = [
            ["class", *names, Bold("mean" if len(runs) == 1 else "mean of these classes")],
            ["objects", *objects, f"{sum(first.objects[name] for name in names):,}"],
        ]
        if len(runs) > 1:
            columns += [_scores(name, run.per_class, names) for name, run in runs.items()]
            columns.append(_scores("constant box", first.constant, names))
        else:
            scores = _scores("AP", first.per_class, names, first.mean)
            columns += [
                scores,
                ["", *(Meter(0.0 if score != score else score) for score in scores[1:])],
                _scores("AP@.5:.95", first.strict, names, first.strict_mean),
                _scores("constant box", first.constant, names, first.constant_mean),
                ["precision", *map(percent, _with_mean(first.precision, names))],
                ["recall", *map(percent, _with_mean(first.recall, names))],
            ]
        return [list(row) for row in zip(*columns, strict=True)]

    @staticmethod
    def class_charts(runs: Mapping[str, "Precision"]) -> list[tuple[Markup, str]]:
        """Draws a chart of precision by recall for each class, with its name."""
        charts = []
        for name in _known(runs):
            figure, axes = _new_chart(_SMALL)
            for n, (run_name, run) in enumerate(runs.items()):
                if curve := run.curves[name]:
                    (line,) = axes.plot(_RECALLS, curve, color=run_colour(n))
                    set_tooltip(line, run_name)
            charts.append((to_svg(figure, f"Precision by recall of {name}"), name))
        return charts

    @staticmethod
    def mean_chart(runs: Mapping[str, "Precision"]) -> Markup:
        """Draws the mean of the classes' curves; of a single run, each class too, in grey."""
        figure, axes = _new_chart()
        for n, (run_name, run) in enumerate(runs.items()):
            curves = {name: curve for name in _known(runs) if (curve := run.curves[name])}
            for name, curve in curves.items() if len(runs) == 1 else ():
                (line,) = axes.plot(
                    _RECALLS, curve, color=colour("soft"), linewidth=0.8, alpha=0.45
                )
                set_tooltip(line, name)
            if curves:
                mean = np.mean(list(curves.values()), axis=0)
                (line,) = axes.plot(_RECALLS, mean, color=run_colour(n), linewidth=1.8)
                set_tooltip(line, f"{run_name}: mean")
        return to_svg(figure, "Precision by recall: mean of the classes")


def common_classes(runs: Mapping[str, Precision]) -> list[str]:
    """Returns the classes that all runs have, in the order of the first run."""
    first, *others = (run.objects for run in runs.values())
    return [name for name in first if all(name in objects for objects in others)]


def _known(runs: Mapping[str, Precision]) -> list[str]:
    """Returns the common classes that have a curve in some run."""
    names = common_classes(runs)
    return [name for name in names if any(run.curves[name] for run in runs.values())]


def _with_mean(
    figures: Mapping[str, float | None], names: Sequence[str], mean: float | None = None
) -> list[float | None]:
    """Returns the figures of the classes, then their mean, unless it is given."""
    chosen = [figures[name] for name in names]
    defined = [figure for figure in chosen if figure is not None]
    if mean is None and defined:
        mean = float(np.mean(defined))
    return [*chosen, mean]


def _scores(
    head: str, figures: Mapping[str, float | None], names: Sequence[str], mean: float | None = None
) -> list[Cell]:
    return [head, *map(Score, _with_mean(figures, names, mean))]


def _new_chart(size: tuple[int, int] = SIZE) -> tuple[Figure, Axes]:
    figure, axes = new_chart(size)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    return figure, axes
