"""How well the anchors fit the ground truth, by level, size and class."""

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from scratchdet_jax.errors import plural
from scratchdet_jax.reports.doctor.fit import Fit, box_sides, share
from scratchdet_jax.reports.doctor.sections.boxes import size_axis, size_edges
from scratchdet_jax.reports.doctor.study import DRAWS, DataSetStudy
from scratchdet_jax.reports.page.charts import bar_chart
from scratchdet_jax.reports.page.tables import Bold, Cell, Share
from scratchdet_jax.reports.page.wording import Finding, number, percent, verb

_LOSS = 0.10  # share of the boxes that augmentation may cost


class LevelInfo(NamedTuple):
    """One level of anchors: cells, (min, max) size in pixels, ratios, number of anchors."""

    map: tuple[int, int]
    sizes: tuple[int, int]
    ratios: tuple[float, ...]
    anchors: int


@dataclasses.dataclass(frozen=True)
class FitSummary:
    """Shares of the boxes, in [0, 1]; NaN if there is no box.

    Attributes:
        count: boxes.
        reached: whose best IoU over all levels reaches the threshold.
        reached_by_level: the same for each level's anchors alone, [L].
        home: whose best anchor, over all levels, is on the level, [L].
        forced: trained only by the bipartite match.
        untrained: no anchor is matched to them.
        anchors_per_box: mean number of anchors matched to a box.
        count_by_class: boxes of each class, [C].
        reached_by_class: over all levels, [C].
        reached_by_class_and_level: [C][L].
    """

    count: int
    reached: float
    reached_by_level: list[float]
    home: list[float]
    forced: float
    untrained: float
    anchors_per_box: float
    count_by_class: list[int]
    reached_by_class: list[float]
    reached_by_class_and_level: list[list[float]]


class ReachBySize(NamedTuple):
    """Share of the boxes of each size that reach an anchor, NaN if there is none.

    Attributes:
        edges: of sqrt(area) in pixels of the network input, [n + 1].
        before: [n].
        after: [n], after augmentation.
    """

    edges: list[float]
    before: list[float]
    after: list[float]


class Anchors(NamedTuple):
    """The fit of the decoded images' boxes, before and after augmentation.

    `emptied` is the share of the draws in which augmentation removes all boxes.
    """

    reached_by_size: ReachBySize
    levels: list[LevelInfo]
    before: FitSummary
    after: FitSummary
    draws: int
    emptied: float

    @classmethod
    def measure(cls, study: DataSetStudy) -> "Anchors":
        """Summarises the study's two fits."""
        levels, classes = study.levels, len(study.class_names)
        counts = np.diff((0, *levels.ends)).tolist()
        edges = size_edges(study.image_size)
        return cls(
            ReachBySize(
                edges.tolist(),
                _reach_by_size(study.before, study, edges),
                _reach_by_size(study.after, study, edges),
            ),
            [
                LevelInfo(*row)
                for row in zip(levels.maps, levels.sizes, levels.ratios, counts, strict=True)
            ],
            summarize(study.before, study.threshold, classes),
            summarize(study.after, study.threshold, classes),
            DRAWS,
            share((study.boxes_left == 0).ravel()),
        )

    def findings(self, study: DataSetStudy) -> Iterator[Finding]:
        """Finds boxes that no anchor trains, tiny objects, and what augmentation costs."""
        untrained = self.before.untrained
        if untrained > 0:
            count = round(untrained * self.before.count)
            yield Finding(
                "warning",
                untrained,
                f"{plural(count, 'box')} {verb(count, 'is')} trained by no anchor.",
                "Such boxes are in a crowd whose anchors are all taken, or overlap no anchor: use "
                "more or smaller anchors.",
            )
        tiny = share(study.sizes < study.levels.cell)
        if tiny >= 0.01:
            yield Finding(
                "warning",
                tiny,
                f"{percent(tiny)} of the boxes are smaller than one cell of the finest map "
                f"({study.levels.cell:.0f} px): little of such objects remains visible.",
                "Increase config.image_size, or cut the photos into tiles.",
            )
        lost = self.before.reached - self.after.reached
        if lost >= _LOSS:
            yield Finding(
                "warning",
                lost,
                f"After augmentation only {percent(self.after.reached)} of the boxes reach an "
                f"anchor ({percent(self.before.reached)} before): expansion shrinks objects.",
                "Lower config.augment.expand_max_ratio or expand_probability, or start with "
                "smaller anchors.",
            )
        if self.emptied >= 0.01:
            yield Finding(
                "note",
                self.emptied,
                f"Augmentation removes every box in {percent(self.emptied)} of the draws: such "
                "an image contributes nothing to the loss of that step.",
            )

    def chart(self, study: DataSetStudy) -> Markup:
        """Draws the share of the boxes of each size that reach an anchor."""
        title = "share of boxes that reach an anchor, by size"
        return bar_chart(*self.reached_by_size, title, size_axis(study.levels))

    def level_rows(self) -> list[list[Cell]]:
        """Returns the shares by level, and over all levels."""
        before, after = self.before, self.after
        reached = ["reached", "best there", "augmented", "best there"]
        rows: list[list[Cell]] = [["level", "map", "sizes, px", "anchors", *reached]]
        for n, level in enumerate(self.levels):
            shape = [f"{level.map[0]}×{level.map[1]}", f"{level.sizes[0]}–{level.sizes[1]}"]
            row: list[Cell] = [str(n + 1), *shape, f"{level.anchors:,}"]
            for fit in (before, after):
                row += [Share(fit.reached_by_level[n]), percent(fit.home[n])]
            rows.append(row)
        anchors = f"{sum(level.anchors for level in self.levels):,}"
        rows.append(
            [Bold("all"), "", "", anchors, Share(before.reached), "", Share(after.reached), ""]
        )
        for title, *cells in (
            ("only by forced match", percent(before.forced), percent(after.forced)),
            ("by no anchor", percent(before.untrained), percent(after.untrained)),
            ("anchors per box", *(number(f.anchors_per_box, 1) for f in (before, after))),
        ):
            rows.append([title, "", "", "", cells[0], "", cells[1], ""])
        return rows

    def class_rows(self, study: DataSetStudy) -> list[list[Cell]]:
        """Returns the shares by class and level."""
        levels = [f"level {n + 1}" for n in range(len(self.levels))]
        rows: list[list[Cell]] = [["class", "all levels", *levels, "augmented"]]
        for name, overall, by_level, augmented in zip(
            study.class_names,
            self.before.reached_by_class,
            self.before.reached_by_class_and_level,
            self.after.reached_by_class,
            strict=True,
        ):
            rows.append([name, Share(overall), *map(Share, by_level), Share(augmented)])
        return rows


def summarize(fit: Fit, threshold: float, class_count: int) -> FitSummary:
    """Returns shares over all boxes, by level and by class."""
    reached = fit.best >= threshold
    overall = fit.reached(threshold)
    home = np.argmax(fit.best, axis=1)
    classes = [fit.labels == label for label in range(1, class_count + 1)]
    return FitSummary(
        count=len(fit.labels),
        reached=share(overall),
        reached_by_level=[share(column) for column in reached.T],
        home=[share(home == n) for n in range(fit.best.shape[1])],
        forced=share((fit.positives > 0) & (fit.reaching == 0)),
        untrained=share(fit.positives == 0),
        anchors_per_box=share(fit.positives),
        count_by_class=[int(own.sum()) for own in classes],
        reached_by_class=[share(overall[own]) for own in classes],
        reached_by_class_and_level=[[share(c) for c in reached[own].T] for own in classes],
    )


def _reach_by_size(fit: Fit, study: DataSetStudy, edges: np.ndarray) -> list[float]:
    size = np.sqrt(box_sides(fit.boxes, study.image_size).prod(axis=1)).clip(edges[0], edges[-1])
    counts = np.histogram(size, edges)[0]
    hits = np.histogram(size[fit.reached(study.threshold)], edges)[0]
    return [h / n if n else math.nan for h, n in zip(hits, counts, strict=True)]
