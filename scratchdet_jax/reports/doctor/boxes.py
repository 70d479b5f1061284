"""Box sizes, shapes and classes, and defects of the boxes as stored."""

import collections
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from scratchdet_jax.errors import plural
from scratchdet_jax.reports.doctor.fit import Levels, box_sides, share
from scratchdet_jax.reports.doctor.study import DataSetStudy
from scratchdet_jax.reports.page.charts import bar_chart
from scratchdet_jax.reports.page.tables import Finding, first_few, named, number, percent, several

_IMBALANCE = 10.0  # boxes of the commonest class to those of the rarest
_FEW_BOXES = 50  # of a class
_ASPECT_EDGES = 2.0 ** np.arange(-3, 3.01, 0.25)  # four bins to an octave
_BEYOND = 1e-4
"""Tolerance outside the image, relative to its side: 0.05 pixel of 500."""

Places = list[tuple[float, str]]


def measure(study: DataSetStudy) -> dict[str, Any]:
    """Measures the boxes of all distinct images, and those that augmentation leaves.

    Returns:
        `classes`, see `_class_counts`; histograms of sizes, aspect ratios, and boxes per image;
        `defects` of the boxes as stored, by kind, the most common first; `prepared`, the same of
        the source files.
    """
    after = box_sides(study.after.boxes, study.image_size)
    found: dict[str, list[str]] = collections.defaultdict(list)
    for look in (study.looks[i] for i in study.images):
        for kind, detail in box_defects(*look.stored):
            found[kind].append(f"{look.place}, {detail}")
    ranked = sorted(found.items(), key=lambda item: -len(item[1]))
    return {
        "classes": [_class_counts(study, n + 1) for n in range(len(study.class_names))],
        "size_histogram": _histogram(
            size_edges(study.image_size), study.sizes, np.sqrt(after.prod(axis=1))
        ),
        "aspect_histogram": _histogram(
            _ASPECT_EDGES,
            *(sides[:, 1] / np.maximum(sides[:, 0], 1e-9) for sides in (study.sides, after)),
        ),
        "count_histogram": count_histogram(study.table.counts),
        "defects": {kind: named(texts) for kind, texts in ranked},
        "prepared": study.prepared,
    }


def findings(study: DataSetStudy, figures: Mapping[str, Any]) -> Iterator[Finding]:
    """Finds ignored boxes, scarce classes, and defects of the boxes and the source files."""
    total = max(len(study.table.labels), 1)
    if ignored := int(study.table.ignore.sum()):
        use = "trained on" if study.config.data.train_on_ignored else "not trained on"
        yield Finding(
            "note",
            ignored / total,
            f"{plural(ignored, 'box')} ({percent(ignored / total)}) "
            f"{'is' if ignored == 1 else 'are'} marked difficult or crowd: {use} "
            "(config.data.train_on_ignored) and not scored by VOC's rules.",
        )
    yield from _class_findings(figures["classes"])
    repeated = {k: n for k, n in figures["defects"].items() if k.startswith("the same box")}
    wrong = {k: n for k, n in figures["defects"].items() if k not in repeated}
    if wrong:
        count, kinds = _kinds(wrong, ", ")
        yield Finding(
            "problem",
            count / total,
            f"{several(count, 'stored box', 'is')} degenerate or out of range: {kinds}.",
            "Boxes are clipped to the image, and dropped if nothing remains; fix the annotations.",
        )
    for kind, names in repeated.items():
        yield Finding(
            "warning",
            names["count"] / total,
            f"In {plural(names['count'], 'case')}, an image has {kind}.",
            "Only one of the two gets the best anchors; remove the other.",
        )
    if figures["prepared"]:
        count, kinds = _kinds(figures["prepared"], "; ")
        yield Finding(
            "note",
            count / max(len(study.images), 1),
            f"Preparing the data set found {plural(count, 'defect')}: {kinds}.",
            "The details are in report.json beside the prepared data.",
        )


def _kinds(found: Mapping[str, Any], separator: str) -> tuple[int, str]:
    """Returns the number of all defects, and how many there are of each kind."""
    counts = {kind: names["count"] for kind, names in found.items()}
    return sum(counts.values()), separator.join(f"{n} × {kind}" for kind, n in counts.items())


def _class_findings(classes: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    totals = {c["name"]: c["boxes"] + c["ignored"] for c in classes}
    if absent := [name for name, total in totals.items() if not total]:
        yield Finding(
            "problem",
            len(absent) / len(classes),
            f"{several(len(absent), 'class', 'has')} no boxes: {first_few(absent, 8)}.",
            "Remove unused names from the class list, or check the annotations' spelling.",
        )
    present = {name: total for name, total in totals.items() if total}
    ratio = max(present.values(), default=0) / min(present.values(), default=1)
    if ratio >= _IMBALANCE:
        most, least = max(present, key=present.__getitem__), min(present, key=present.__getitem__)
        yield Finding(
            "warning",
            min(ratio / 100, 1.0),
            f"{most} has {ratio:.0f} times as many boxes as {least} "
            f"({percent(present[most] / sum(present.values()))} of all are {most}): it dominates "
            "the loss.",
            f"More images with {least} help most; check each class's AP, not only the mean.",
        )
    scored = {c["name"]: c["boxes"] for c in classes if c["name"] in present}
    if few := [f"{name} {boxes}" for name, boxes in scored.items() if boxes < _FEW_BOXES]:
        yield Finding(
            "warning",
            len(few) / len(classes),
            f"{several(len(few), 'class', 'has')} fewer than {_FEW_BOXES} boxes that are scored "
            f"({first_few(few, 6)}).",
            "These are too few to learn from scratch; expect a low AP.",
        )


def rows(study: DataSetStudy, figures: Mapping[str, Any]) -> list[list[str]]:
    """Returns counts and sizes by class."""
    bounds = (f"<{study.levels.smallest} px", f"<{study.levels.cell:.0f} px")
    table = [["class", "images", "boxes", "5 %", "median", "95 %", *bounds]]
    for c in figures["classes"]:
        counts = [c["name"], f"{c['images']:,}", f"{c['boxes'] + c['ignored']:,}"]
        sizes = (number(c[f"size_{name}"]) for name in ("low", "median", "high"))
        table.append([*counts, *sizes, percent(c["below_smallest"]), percent(c["tiny"])])
    return table


def charts(study: DataSetStudy, figures: Mapping[str, Any]) -> list[Markup]:
    """Draws sizes and aspect ratios, with marks at those of the anchors, and boxes per image."""
    levels, counts = study.levels, figures["count_histogram"]
    ratios = {1.0, *(float(r) for level in levels.ratios for r in level)}
    aspects = (
        [(2.0**k, f"{2**k}" if k >= 0 else f"1/{2**-k}") for k in range(-3, 4)],
        [(r, f"{r:.2g}") for r in sorted({*ratios, *(1 / r for r in ratios)})],
    )
    # About five labels, in the middle of their bins, the last among them.
    names = count_labels(counts["edges"], study.most_boxes)
    middles = [sum(pair) / 2 for pair in itertools.pairwise(counts["edges"])]
    ticks = list(zip(middles, names, strict=True))[:: -max(1, len(names) // 5)]
    return [
        _chart(figures["size_histogram"], "box sizes", *size_axis(levels)),
        _chart(figures["aspect_histogram"], "aspect ratios", *aspects),
        _chart(counts, "boxes per image", ticks),
    ]


def _chart(histogram: Mapping[str, Any], title: str, *axis: Places) -> Markup:
    """Draws the shares: bars as annotated, and a line after augmentation."""
    edges, *counts = histogram.values()
    bars, line = (c and [n / max(sum(c), 1) for n in c] for c in counts)
    return bar_chart(edges, bars, line, title, *axis)


def size_edges(image_size: int) -> np.ndarray:
    """Returns bins of sqrt(area) in pixels, four to an octave, from a 64th of the input's side."""
    return image_size * 2.0 ** np.arange(-6, 0.01, 0.25)


def size_axis(levels: Levels) -> tuple[Places, Places]:
    """Returns labels at every octave, in pixels and percent, and marks at the anchors' sizes."""
    side = levels.image_size
    ticks = [(side * 2.0**k, f"{side * 2.0**k:.0f}\n{percent(2.0**k)}") for k in range(-6, 1)]
    return ticks, [(float(low), str(low)) for low, _ in levels.sizes]


def count_histogram(counts: np.ndarray) -> dict[str, Any]:
    """Counts boxes per image in about 30 bins of integer width; the largest 1 % share the last."""
    usual = np.percentile(counts, 99) if len(counts) else 0
    step = max(1, math.ceil((usual + 1) / 30))
    edges = np.arange(0, max(min(counts.max(initial=0), 30 * step), 1) + step + 1, step)
    return _histogram(edges, np.minimum(counts, edges[-2]))


def count_labels(edges: Sequence[float], most: int) -> list[str]:
    """Returns names of the bins of boxes per image; the last is open if `most` is beyond it."""
    starts = [round(edge) for edge in edges]
    labels = [
        str(low) if high == low + 1 else f"{low}–{high - 1}"
        for low, high in itertools.pairwise(starts)
    ]
    return labels if most < starts[-1] else [*labels[:-1], f"{starts[-2]}+"]


def box_defects(boxes: np.ndarray, labels: np.ndarray) -> Iterator[tuple[str, str]]:
    """Finds defects of the boxes of one image, as stored: (kind, detail).

    Args:
        boxes: float [n, 4], (ymin, xmin, ymax, xmax), normalised, unchecked.
        labels: int [n], 1…C; smaller values are no class.
    """
    copies = collections.defaultdict(list)
    for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        ymin, xmin, ymax, xmax = box
        text = f"box {i + 1}: y {ymin:.4g}…{ymax:.4g}, x {xmin:.4g}…{xmax:.4g}"
        if not np.isfinite(box).all():
            yield "coordinates that are no numbers", text
        elif ymin > ymax or xmin > xmax:
            yield "swapped corners", text
        elif ymin == ymax or xmin == xmax:
            yield "no area", text
        elif max(ymin, xmin) >= 1 or min(ymax, xmax) <= 0:
            yield "wholly outside the image", text
        elif box.min() < -_BEYOND or box.max() > 1 + _BEYOND:
            yield "reaches out of the image", text
        if label < 1:
            yield "no class", text
        copies[tuple(box.tolist())].append(i)
    for same in copies.values():
        for a, b in itertools.pairwise(same):
            kind = "the same box twice" + ("" if labels[a] == labels[b] else ", of two classes")
            yield kind, f"boxes {a + 1} and {b + 1}"


def _class_counts(study: DataSetStudy, label: int) -> dict[str, Any]:
    """Returns the counts and sizes of a class's distinct boxes.

    Sizes are sqrt(area) in pixels of the network input, from the 5th to the 95th percentile.
    `below_smallest` is the share of boxes smaller than the smallest anchor, `tiny` the share
    smaller than one cell of the finest feature map.
    """
    own, sizes = study.table.labels == label, study.class_sizes(label)
    low, median, high = np.percentile(sizes, (5, 50, 95)) if len(sizes) else [math.nan] * 3
    return {
        "name": study.class_names[label - 1],
        "images": len(np.unique(study.table.image[own])),
        "boxes": int((own & ~study.table.ignore).sum()),
        "ignored": int((own & study.table.ignore).sum()),
        "size_median": float(median),
        "size_low": float(low),
        "size_high": float(high),
        "below_smallest": share(sizes < study.levels.smallest),
        "tiny": share(sizes < study.levels.cell),
    }


def _histogram(
    edges: np.ndarray, values: np.ndarray, after: np.ndarray | None = None
) -> dict[str, Any]:
    """Counts values as annotated, and after augmentation, between rising `edges` [n + 1].

    A value beyond the edges is counted in the nearest bin.
    """
    edges = np.asarray(edges, float)
    counts, counts_after = (
        v if v is None else np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0].tolist()
        for v in (values, after)
    )
    return {"edges": edges.tolist(), "counts": counts, "after": counts_after}
