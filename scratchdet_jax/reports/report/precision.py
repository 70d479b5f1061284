"""What a run scores: by class, by recall, by kind of error, by size and by pair of classes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scratchdet_jax.evaluation import coco, voc
from scratchdet_jax.evaluation.detections import ImageDetections, ImageGroundTruth, overlaps
from scratchdet_jax.reports.baseline import constant_box
from scratchdet_jax.reports.page.charts import (
    SIZE,
    colour,
    new_chart,
    run_colour,
    set_tooltip,
    to_svg,
)
from scratchdet_jax.reports.page.tables import Cell, meter, number, percent, score, transposed
from scratchdet_jax.reports.report.study import RunStudy
from scratchdet_jax.reports.tide import BACKGROUND, CORRECT, FOREGROUND, KINDS, summarize

SIZES = {"small": ("s", 0, 32**2), "medium": ("m", 32**2, 96**2), "large": ("l", 96**2, np.inf)}
"""COCO's: the ending of the metric's name, and the area in pixels of the image."""
MEANINGS = {
    "classification": f"IoU from {FOREGROUND} with an object of another class",
    "localization": f"right class, IoU from {BACKGROUND} to {FOREGROUND}",
    "both": f"another class, IoU from {BACKGROUND} to {FOREGROUND}",
    "duplicate": f"right class, IoU from {FOREGROUND}, but the object is found already",
    "background": f"IoU below {BACKGROUND} with every object",
    "missed": "object without a detection that a right class or a better box would correct",
}
_RECALLS = np.arange(101) / 100
_SMALL = (260, 180)

Figures = Mapping[str, Any]


def measure(study: RunStudy) -> dict[str, dict[str, Any]]:
    """Scores the detections.

    Returns:
        The figures of `precision`, `errors` (a `tide.Tide`), `sizes` and `confusion`: the matrix
        [C + 1, C + 1] of counts (row: ground truth, column: detection, the background last).
    """
    evaluation = study.evaluation
    matrix = confusion_matrix(
        evaluation.detections,
        evaluation.ground_truth,
        len(study.class_names),
        score=study.threshold,
    )
    return {
        "precision": _precision(study),
        "errors": summarize(study.analysis, len(study.class_names))._asdict(),
        "sizes": _sizes(study),
        "confusion": {
            "class_names": [*study.class_names, "background"],
            "threshold": study.threshold,
            "matrix": np.roll(matrix, (-1, -1), axis=(0, 1)).tolist(),
        },
    }


def _precision(study: RunStudy) -> dict[str, Any]:
    """Returns average precision; None where there is no ground truth that counts.

    `label` is the rule of the run's metric; by it are `mean`, `per_class`, and what a constant box
    scores. `strict` is COCO's AP, IoU 0.5:0.95. `objects` is ground truth that counts. From the
    threshold on, `precision` is the share of a class's detections that are correct, and `recall`
    the share of its objects that these find. `curves` hold the best precision at recall 0, 0.01,
    …, 1, at IoU 0.5 by VOC's matching.
    """
    evaluation, names = study.evaluation, study.class_names
    results, truth = evaluation.results, evaluation.ground_truth
    metric = study.config.eval.metric
    constant = constant_box(truth, evaluation.sizes, names, metric).record()
    curves = voc.curves(evaluation.detections, truth, names)
    found, flat, kind, _, ignored, _, _ = study.analysis
    shown = (found.scores >= study.threshold) & ~ignored
    guessed, right, objects = (
        np.bincount(labels, minlength=len(names) + 1)[1:].tolist()
        for labels in (
            found.labels[shown],
            found.labels[shown & (kind == CORRECT)],
            flat.labels[~flat.ignore],
        )
    )

    def shares(counts: list[int]) -> dict[str, float | None]:
        triples = zip(names, right, counts, strict=True)
        return {name: hits / count if count else None for name, hits, count in triples}

    return {
        "label": results["label"],
        "mean": results["mAP"],
        "per_class": results["AP"],
        "strict_mean": results["mAP"] if metric == "coco" else results[coco.MAP_KEY],
        "strict": study.strict,
        "constant_mean": constant["mAP"],
        "constant": constant["AP"],
        "objects": dict(zip(names, objects, strict=True)),
        "threshold": study.threshold,
        "precision": shares(guessed),
        "recall": shares(objects),
        "curves": {
            name: curve and voc.best_precision(curve, _RECALLS).round(4).tolist()
            for name, curve in curves.items()
        },
    }


def _sizes(study: RunStudy) -> dict[str, dict[str, Any]]:
    """Returns COCO's metrics by size; None without such objects.

    `ap` is at IoU 0.5:0.95; `recall` the mean over the same IoU of the share that 100 detections of
    an image find.
    """
    truth = study.analysis.truth
    boxes = truth.boxes_pixels[~truth.ignore]
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return {
        "objects": {
            name: int(np.sum((area >= low) & (area < high)))
            for name, (_, low, high) in SIZES.items()
        },
        "ap": {name: study.coco[f"AP{end}"] for name, (end, _, _) in SIZES.items()},
        "recall": {name: study.coco[f"AR{end}"] for name, (end, _, _) in SIZES.items()},
    }


def rows(runs: Mapping[str, Figures]) -> list[list[str]]:
    """Returns AP by class, for the classes that all runs have, and the mean."""
    names = common_classes(runs)
    first, *others = runs.values()
    objects = [first["objects"][name] for name in names]
    columns: list[list[str]] = [
        ["class", *names, Cell("mean of these classes" if others else "mean", "bold")],
        ["objects", *(f"{count:,}" for count in (*objects, sum(objects)))],
    ]
    if others:
        scored = {name: run["per_class"] for name, run in runs.items()}
        for head, figures in {**scored, "constant box": first["constant"]}.items():
            columns.append([head, *map(score, _with_mean(figures, names))])
        return transposed(columns)
    for head, field, mean in (
        ("AP", "per_class", "mean"),
        ("AP@.5:.95", "strict", "strict_mean"),
        ("constant box", "constant", "constant_mean"),
    ):
        columns.append([head, *map(score, _with_mean(first[field], names, first[mean]))])
    for field in ("precision", "recall"):
        columns.append([field, *map(percent, _with_mean(first[field], names))])
    bars = [meter(cell.share) for cell in columns[2][1:] if isinstance(cell, Cell)]
    return transposed([*columns[:3], ["", *bars], *columns[3:]])


def common_classes(runs: Mapping[str, Figures]) -> list[str]:
    """Returns the classes that all runs have, in the order of the first run."""
    first, *others = (run["objects"] for run in runs.values())
    return [name for name in first if all(name in objects for objects in others)]


def _with_mean(
    figures: Mapping[str, float | None], names: Sequence[str], mean: float | None = None
) -> list[float | None]:
    """Returns the figures of the classes, then their mean, unless it is given."""
    chosen = [figures[name] for name in names]
    defined = [figure for figure in chosen if figure is not None]
    if mean is None and defined:
        mean = float(np.mean(defined))
    return [*chosen, mean]


def class_charts(runs: Mapping[str, Figures]) -> list[tuple[Markup, str]]:
    """Draws a chart of precision by recall for each class, with its name."""
    charts = []
    for name in _known(runs):
        figure, axes = _new_chart(_SMALL)
        for n, (run_name, run) in enumerate(runs.items()):
            if curve := run["curves"][name]:
                _plot(axes, curve, run_name, color=run_colour(n))
        charts.append((to_svg(figure, f"Precision by recall of {name}"), name))
    return charts


def mean_chart(runs: Mapping[str, Figures]) -> Markup:
    """Draws the mean of the classes' curves; of a single run, each class too, in grey."""
    figure, axes = _new_chart(SIZE)
    for n, (run_name, run) in enumerate(runs.items()):
        curves = {name: curve for name in _known(runs) if (curve := run["curves"][name])}
        for name, curve in curves.items() if len(runs) == 1 else ():
            _plot(axes, curve, name, color=colour("soft"), linewidth=0.8, alpha=0.45)
        if curves:
            mean = np.mean(list(curves.values()), axis=0)
            _plot(axes, mean, f"{run_name}: mean", color=run_colour(n), linewidth=1.8)
    return to_svg(figure, "Precision by recall: mean of the classes")


def _known(runs: Mapping[str, Figures]) -> list[str]:
    """Returns the common classes that have a curve in some run."""
    names = common_classes(runs)
    return [name for name in names if any(run["curves"][name] for run in runs.values())]


def _new_chart(size: tuple[int, int]) -> tuple[Figure, Axes]:
    figure, axes = new_chart(size)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    return figure, axes


def _plot(axes: Axes, curve: Sequence[float], name: str, **style: Any) -> None:
    (line,) = axes.plot(_RECALLS, curve, **style)
    set_tooltip(line, name)


def error_rows(runs: Mapping[str, Figures]) -> list[list[str]]:
    """Returns a row per kind: what it costs and how many there are, for each run."""
    largest = max(cost for run in runs.values() for cost in run["costs"].values()) or 1.0
    single = len(runs) == 1
    columns: list[list[str]] = [["kind", *KINDS, "all false detections", "all objects not found"]]
    for name, run in runs.items():
        costs = [run["costs"][kind] for kind in KINDS]
        figures = (*costs, run["false_positives"], run["false_negatives"])
        head = "cost" if single else f"{name}: cost"
        columns.append([head, *(number(figure, 3) for figure in figures)])
        if single:
            columns.append(["", *(meter(cost / largest) for cost in costs), "", ""])
        columns.append(["errors", *(f"{run['counts'][kind]:,}" for kind in KINDS), "", ""])
    return transposed(columns)


def error_sentence(run: Figures) -> str:
    """Returns the AP, and which kind of error costs the most."""
    ap, costs = run["ap"], run["costs"]
    if math.isnan(ap):
        return "no AP, because no object counts."
    kind = max(KINDS, key=costs.__getitem__)
    if costs[kind] < 0.0005:
        return f"AP {ap:.3f}; no kind of error alone costs anything."
    return f"AP {ap:.3f}; errors of the kind {kind} cost the most, {costs[kind]:.3f}."


def size_rows(runs: Mapping[str, Figures]) -> list[list[str]]:
    """Returns the metrics by size, for each run."""
    columns: list[list[str]] = [["size", *SIZES]]
    for name, run in runs.items():
        head = f"{name}: objects" if len(runs) > 1 else "objects"
        columns.append([head, *(f"{run['objects'][size]:,}" for size in SIZES)])
        columns.append(["AP@.5:.95", *(score(run["ap"][size]) for size in SIZES)])
        columns.append(["recall", *(score(run["recall"][size]) for size in SIZES)])
    return transposed(columns)


def confusion_matrix(
    detections: Mapping[str, ImageDetections],
    ground_truth: Mapping[str, ImageGroundTruth],
    class_count: int,
    *,
    score: float = 0.5,
    iou: float = 0.5,
) -> np.ndarray:
    """Counts pairs of ground truth and detection, whatever their classes.

    In descending order of IoU, a detection and a box of the ground truth that are both still free
    become a pair. What is left is background. Left-over detections that meet an ignored box are
    left out.

    Takes the arguments of `voc.evaluate`; `class_count` is C. Detections with a score below `score`
    are left out, and `iou` is the smallest IoU of a pair.

    Returns:
        int64 [C + 1, C + 1]; row: the class of the ground truth, column: that of the detection;
        0 is the background: column 0 counts objects that were not found, row 0 detections of
        nothing.
    """
    matrix = np.zeros((class_count + 1, class_count + 1), np.int64)
    for image_id, truth in ground_truth.items():
        real = truth.labels > 0
        boxes, labels = truth.boxes_pixels[real], truth.labels[real]
        ignore = truth.ignore[real]
        counted = labels[~ignore]
        found = detections.get(image_id)
        if found is None:
            np.add.at(matrix, (counted, 0), 1)
            continue
        shown = (found.scores >= score) & (found.labels > 0)
        guessed = found.labels[shown]
        overlap = overlaps(found.boxes_pixels[shown], boxes[~ignore])
        rows, columns = np.nonzero(overlap >= iou)
        free_found, free_truth = np.ones(len(guessed), bool), np.ones(len(counted), bool)
        for pair in np.argsort(-overlap[rows, columns], kind="stable"):
            row, column = rows[pair], columns[pair]
            if free_found[row] and free_truth[column]:
                free_found[row] = free_truth[column] = False
                matrix[counted[column], guessed[row]] += 1
        np.add.at(matrix, (counted[free_truth], 0), 1)
        on_ignored = overlaps(found.boxes_pixels[shown], boxes[ignore]) >= iou
        np.add.at(matrix[0], guessed[free_found & ~on_ignored.any(axis=1)], 1)
    return matrix


def matrix_rows(confusion: Figures) -> list[list[str]]:
    """Returns the confusion matrix, tinted by the share of the row."""
    names = confusion["class_names"]
    rows: list[list[str]] = [["", *names]]
    for n, counts in enumerate(confusion["matrix"]):
        total = sum(counts) or 1
        kinds = ("share" if m == n else "slip" for m in range(len(names)))
        cells = [
            Cell(f"{count:,}", kind, count / total)
            for count, kind in zip(counts, kinds, strict=True)
        ]
        rows.append([Cell(names[n], "bold"), *cells])
    rows[-1][-1] = ""  # background that is background is not counted
    return rows


def confused_rows(confusion: Figures, most: int) -> list[list[str]]:
    """Returns the most frequent confusions of two classes; only the head if there are none."""
    names, matrix = confusion["class_names"][:-1], np.array(confusion["matrix"])
    counts = matrix[:-1, :-1] * ~np.eye(len(names), dtype=bool)
    order = np.argsort(-counts, axis=None, kind="stable")[: min(most, np.count_nonzero(counts))]
    rows = [["class", "taken for", "objects", "share"]]
    for row, column in zip(*np.unravel_index(order, counts.shape), strict=True):
        count = counts[row, column]
        rows.append([names[row], names[column], f"{count:,}", percent(count / matrix[row].sum())])
    return rows
