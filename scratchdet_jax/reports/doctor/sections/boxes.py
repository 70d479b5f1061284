"""Box sizes, shapes and classes, and boxes per image."""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from scratchdet_jax.errors import plural
from scratchdet_jax.reports.doctor.fit import Levels, box_sides, share
from scratchdet_jax.reports.doctor.study import DataSetStudy
from scratchdet_jax.reports.page.charts import Axis, bar_chart
from scratchdet_jax.reports.page.tables import Cell
from scratchdet_jax.reports.page.wording import Finding, first_few, number, percent, verb

_IMBALANCE = 10.0  # boxes of the commonest class to those of the rarest
_FEW_BOXES = 50  # of a class
_ASPECT_EDGES = 2.0 ** np.arange(-3, 3.01, 0.25)  # four bins to an octave


class ClassCounts(NamedTuple):
    """One class over all distinct images; sizes are sqrt(area) in pixels of the network input.

    `below_smallest` and `tiny` are shares: of boxes smaller than the smallest anchor, and than
    one cell of the finest feature map.
    """

    name: str
    images: int
    boxes: int
    ignored: int
    size_median: float
    size_low: float
    size_high: float
    below_smallest: float
    tiny: float

    @property
    def total(self) -> int:
        """Returns the number of boxes, ignored ones included."""
        return self.boxes + self.ignored


class Histogram(NamedTuple):
    """Counts between edges, [n + 1] and [n].

    Attributes:
        edges: rising.
        counts: as annotated; a value beyond the edges is counted in the nearest bin.
        after: the same after augmentation, or None.
    """

    edges: list[float]
    counts: list[int]
    after: list[int] | None

    def chart(self, title: str, axis: Axis) -> Markup:
        """Draws the shares: bars as annotated, and a line after augmentation."""
        after = None if self.after is None else _shares(self.after)
        return bar_chart(self.edges, _shares(self.counts), after, title, axis)


class Boxes(NamedTuple):
    """What the boxes are like."""

    classes: list[ClassCounts]
    size_histogram: Histogram
    aspect_histogram: Histogram
    count_histogram: Histogram

    @classmethod
    def measure(cls, study: DataSetStudy) -> "Boxes":
        """Measures the boxes of all distinct images, and those that augmentation leaves."""
        after = box_sides(study.after.boxes, study.image_size)
        labels = range(1, len(study.class_names) + 1)
        return cls(
            [_class_counts(study, label) for label in labels],
            _histogram(size_edges(study.image_size), study.sizes, np.sqrt(after.prod(axis=1))),
            _histogram(_ASPECT_EDGES, *(_aspects(sides) for sides in (study.sides, after))),
            count_histogram(study.table.counts),
        )

    def findings(self, study: DataSetStudy) -> Iterator[Finding]:
        """Finds ignored boxes and scarce classes."""
        total = max(len(study.table.labels), 1)
        ignored = sum(c.ignored for c in self.classes)
        if ignored:
            use = "trained on" if study.config.data.train_on_ignored else "not trained on"
            yield Finding(
                "note",
                ignored / total,
                f"{plural(ignored, 'box')} ({percent(ignored / total)}) {verb(ignored, 'is')} "
                f"marked difficult or crowd: {use} (config.data.train_on_ignored) and not scored "
                "by VOC's rules.",
            )
        yield from self._class_findings()

    def _class_findings(self) -> Iterator[Finding]:
        counted = [c for c in self.classes if c.total]
        absent = [c.name for c in self.classes if not c.total]
        if absent:
            yield Finding(
                "problem",
                len(absent) / len(self.classes),
                f"{plural(len(absent), 'class')} {verb(len(absent), 'has')} no boxes: "
                f"{first_few(absent, 8)}.",
                "Remove unused names from the class list, or check the annotations' spelling.",
            )
        if len(counted) > 1:
            most = max(counted, key=lambda c: c.total)
            least = min(counted, key=lambda c: c.total)
            ratio = most.total / least.total
            if ratio >= _IMBALANCE:
                yield Finding(
                    "warning",
                    min(ratio / 100, 1.0),
                    f"{most.name} has {ratio:.0f} times as many boxes as {least.name} "
                    f"({percent(most.total / sum(c.total for c in counted))} of all are "
                    f"{most.name}): it dominates the loss.",
                    f"More images with {least.name} help most; check each class's AP, not "
                    "only the mean.",
                )
        few = [f"{c.name} {c.boxes}" for c in counted if c.boxes < _FEW_BOXES]
        if few:
            yield Finding(
                "warning",
                len(few) / len(self.classes),
                f"{plural(len(few), 'class')} {verb(len(few), 'has')} fewer than {_FEW_BOXES} "
                f"boxes that are scored ({first_few(few, 6)}).",
                "These are too few to learn from scratch; expect a low AP.",
            )

    def size_chart(self, levels: Levels) -> Markup:
        """Draws the sizes, with marks at the anchors' sizes."""
        return self.size_histogram.chart("box sizes", size_axis(levels))

    def aspect_chart(self, levels: Levels) -> Markup:
        """Draws width over height, with marks at the anchors' ratios."""
        return self.aspect_histogram.chart("aspect ratios", _aspect_axis(levels))

    def count_chart(self, most: int) -> Markup:
        """Draws the numbers of boxes per image; `most` is the largest."""
        histogram = self.count_histogram
        return histogram.chart("boxes per image", _count_axis(histogram, most))

    def rows(self, levels: Levels) -> list[list[Cell]]:
        """Returns counts and sizes by class."""
        bounds = (f"<{levels.smallest} px", f"<{levels.cell:.0f} px")
        rows: list[list[Cell]] = [["class", "images", "boxes", "5 %", "median", "95 %", *bounds]]
        rows += [
            [
                c.name,
                f"{c.images:,}",
                f"{c.total:,}",
                *map(number, (c.size_low, c.size_median, c.size_high)),
                percent(c.below_smallest),
                percent(c.tiny),
            ]
            for c in self.classes
        ]
        return rows


def size_edges(image_size: int) -> np.ndarray:
    """Returns bins of sqrt(area) in pixels, four to an octave, from a 64th of the input's side."""
    return image_size * 2.0 ** np.arange(-6, 0.01, 0.25)


def size_axis(levels: Levels) -> Axis:
    """Returns labels at every octave, in pixels and percent, and marks at the anchors' sizes."""
    side = levels.image_size
    ticks = [(side * 2.0**k, f"{side * 2.0**k:.0f}\n{percent(2.0**k)}") for k in range(-6, 1)]
    return Axis(ticks, [(float(low), str(low)) for low, _ in levels.sizes], log=True)


def count_histogram(counts: np.ndarray) -> Histogram:
    """Counts boxes per image in about 30 bins of integer width; the largest 1 % share the last."""
    usual = np.percentile(counts, 99) if len(counts) else 0
    step = max(1, math.ceil((usual + 1) / 30))
    edges = np.arange(0, max(min(counts.max(initial=0), 30 * step), 1) + step + 1, step)
    return _histogram(edges, np.minimum(counts, edges[-2]))


def count_labels(histogram: Histogram, most: int) -> list[str]:
    """Returns names of the bins of boxes per image; the last is open if `most` is beyond it."""
    starts = [round(edge) for edge in histogram.edges]
    labels = [
        str(low) if high == low + 1 else f"{low}–{high - 1}"
        for low, high in itertools.pairwise(starts)
    ]
    return labels if most < starts[-1] else [*labels[:-1], f"{starts[-2]}+"]


def _class_counts(study: DataSetStudy, label: int) -> ClassCounts:
    own, sizes = study.table.labels == label, study.class_sizes(label)
    low, median, high = np.percentile(sizes, (5, 50, 95)) if len(sizes) else [math.nan] * 3
    return ClassCounts(
        study.class_names[label - 1],
        len(np.unique(study.table.image[own])),
        int((own & ~study.table.ignore).sum()),
        int((own & study.table.ignore).sum()),
        float(median),
        float(low),
        float(high),
        below_smallest=share(sizes < study.levels.smallest),
        tiny=share(sizes < study.levels.cell),
    )


def _aspects(sides: np.ndarray) -> np.ndarray:
    return sides[:, 1] / np.maximum(sides[:, 0], 1e-9)


def _shares(counts: list[int]) -> list[float]:
    return [count / max(sum(counts), 1) for count in counts]


def _histogram(edges: np.ndarray, *values: np.ndarray) -> Histogram:
    """Counts values as annotated, and after augmentation if they are given."""
    counts = [np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0].tolist() for v in values]
    return Histogram(np.asarray(edges, float).tolist(), *counts, *[None] * (2 - len(values)))


def _aspect_axis(levels: Levels) -> Axis:
    ratios = {float(r) for level in levels.ratios for r in level}
    return Axis(
        [(2.0**k, f"{2**k}" if k >= 0 else f"1/{2**-k}") for k in range(-3, 4)],
        [(r, f"{r:.2g}") for r in sorted({1.0, *ratios, *(1 / r for r in ratios)})],
        log=True,
    )


def _count_axis(histogram: Histogram, most: int) -> Axis:
    """Returns labels in the middle of about five bins, the last among them."""
    edges, names = histogram.edges, count_labels(histogram, most)
    step = max(1, len(names) // 5)
    bins = range(len(names) - 1, -1, -step)
    return Axis([((edges[i] + edges[i + 1]) / 2, names[i]) for i in bins])
