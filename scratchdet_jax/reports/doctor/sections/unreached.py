"""Boxes that no anchor reaches: which, why, and what other anchor sizes would reach."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from scratchdet_jax.errors import plural
from scratchdet_jax.ops import boxes as box_ops
from scratchdet_jax.progress import track
from scratchdet_jax.reports.doctor.fit import Levels, box_sides, make_levels, share
from scratchdet_jax.reports.doctor.study import DRAWS, DataSetStudy
from scratchdet_jax.reports.page.tables import Cell, Share, Wrapped
from scratchdet_jax.reports.page.wording import Finding, first_few, percent, verb

_FIRST_PERCENTS = (3.0, 4.0, 5.0, 7.0, 10.0, 14.0)  # anchor sizes to try
_ROWS = 256  # boxes compared at a time
_LISTED = 12  # boxes in the table
_UNREACHED = 0.10  # share of a class's boxes that is worth a warning
_GAIN = 0.03  # gain required to recommend other anchors


class BoxExample(NamedTuple):
    """A box that no anchor reaches; height and width in pixels of the network input.

    `image` and `box` are indices in the census, `anchors` the number matched to it.
    """

    image: int
    box: int
    file: str
    class_name: str
    height: float
    width: float
    best_iou: float
    anchors: int

    @property
    def aspect(self) -> float:
        """Returns width over height."""
        return self.width / max(self.height, 1e-9)


class WhatIf(NamedTuple):
    """Another set of anchor sizes, and the share of the boxes it reaches, plain and augmented."""

    min_percent: tuple[float, ...]
    max_percent: tuple[float, ...]
    reached: float
    reached_augmented: float


class Unreached(NamedTuple):
    """The boxes of the decoded images that no anchor reaches, before augmentation.

    Attributes:
        unreached: the worst.
        unreached_count: how many there are.
        unreached_small: share of them that is too small for any anchor.
        unreached_thin: share of them that is too elongated.
        hopeless: share of each class's boxes that is too small for any anchor, [C].
        what_if: other anchor sizes.
    """

    unreached: list[BoxExample]
    unreached_count: int
    unreached_small: float
    unreached_thin: float
    hopeless: list[float]
    what_if: list[WhatIf]

    @classmethod
    def measure(cls, study: DataSetStudy) -> "Unreached":
        """Finds the reasons, and tries other anchor sizes."""
        fit, levels, threshold = study.before, study.levels, study.threshold
        unreached = np.flatnonzero(~fit.reached(threshold))
        boxes = fit.boxes[unreached]
        small = too_small(fit.boxes, levels, threshold)
        labels = range(1, len(study.class_names) + 1)
        return cls(
            _examples(study, unreached),
            len(unreached),
            share(small[unreached]),
            share(too_long(boxes, levels, threshold)),
            [share(small[fit.labels == label]) for label in labels],
            what_if(study.config, fit.boxes, study.after.boxes[::DRAWS], _FIRST_PERCENTS),
        )

    def findings(self, study: DataSetStudy) -> Iterator[Finding]:
        """Finds the classes with many such boxes."""
        fit = study.before
        reached = fit.reached(study.threshold)
        classes = range(len(study.class_names))
        shares = [(1 - share(reached[fit.labels == n + 1]), n) for n in classes]
        missed = sorted((pair for pair in shares if pair[0] >= _UNREACHED), reverse=True)
        if not missed:
            return
        text = f"Boxes that reach no anchor at IoU {study.threshold:g}: "
        text += "; ".join(self._class_missed(study, *pair) for pair in missed[:3])
        if len(missed) > 3:
            rest = [f"{study.class_names[n]} {percent(part)}" for part, n in missed[3:]]
            text += f"; also {first_few(rest, 5)}"
        yield Finding(
            "warning",
            missed[0][0],
            f"{text}. Of the {plural(self.unreached_count, 'box')} that "
            f"{verb(self.unreached_count, 'reaches')} none, "
            f"{percent(self.unreached_small)} are too small for any anchor and "
            f"{percent(self.unreached_thin)} too elongated; the others fall between the anchors' "
            "sizes or positions. Each trains only its single best anchor.",
            self._sizes_advice(study) or self._other_advice(),
        )

    def _class_missed(self, study: DataSetStudy, missed: float, n: int) -> str:
        """Returns how many boxes of a class reach no anchor, and whether their size explains it."""
        sizes, smallest = study.class_sizes(n + 1), study.levels.smallest
        below = share(sizes < smallest)
        text = f"{percent(missed)} of {study.class_names[n]}"
        if below < missed / 2:
            return text
        text += (
            f" ({percent(below)} of its boxes are smaller than the smallest anchor, "
            f"{smallest} px of {study.image_size}; the median is {np.median(sizes):.0f} px"
        )
        if self.hopeless[n] > 0.01:
            text += f"; {percent(self.hopeless[n])} are too small to reach it at any position"
        return text + ")"

    def better_sizes(self, study: DataSetStudy) -> WhatIf | None:
        """Returns other anchor sizes that would reach clearly more boxes, if there are any."""
        now = sum(_reached(study))
        best = max(self.what_if, key=lambda w: w.reached + w.reached_augmented, default=None)
        if best is None or not best.reached + best.reached_augmented >= now + 2 * _GAIN:
            return None
        return best

    def _sizes_advice(self, study: DataSetStudy) -> str:
        best, now = self.better_sizes(study), _reached(study)
        if best is None:
            return ""
        return (
            f"{percent(best.reached)} instead of {percent(now[0])} of all boxes would reach an "
            f"anchor (after augmentation {percent(best.reached_augmented)} instead of "
            f"{percent(now[1])}) with --config.anchors.min_percent='{_typed(best.min_percent)}' "
            f"--config.anchors.max_percent='{_typed(best.max_percent)}'"
        )

    def _other_advice(self) -> str:
        """Returns advice where other sizes by SSD's rule would not help clearly."""
        if self.unreached_thin > self.unreached_small:
            return "Add larger ratios to config.anchors.aspect_ratios, or accept the loss."
        return (
            "Other anchor sizes at this image size do not clearly help (see the table); a larger "
            "config.image_size would."
        )

    def rows(self) -> list[list[Cell]]:
        """Returns the worst boxes."""
        shape = ("width × height, px", "width / height")
        rows: list[list[Cell]] = [["image", "class", *shape, "best IoU", "anchors trained"]]
        for b in self.unreached:
            size = f"{b.width:.1f}×{b.height:.1f}"
            figures = (f"{b.aspect:.2f}", f"{b.best_iou:.2f}", str(b.anchors))
            rows.append([Wrapped(b.file), b.class_name, size, *figures])
        return rows

    def what_if_rows(self) -> list[list[Cell]]:
        """Returns other anchor sizes, and what they would reach."""
        rows: list[list[Cell]] = [["first level at", "min_percent", "reached", "augmented"]]
        for w in self.what_if:
            sizes = [f"{p:g}" for p in w.min_percent]
            shares = (Share(w.reached), Share(w.reached_augmented))
            rows.append([f"{sizes[0]} %", ", ".join(sizes), *shares])
        return rows


def too_small(boxes: np.ndarray, levels: Levels, threshold: float) -> np.ndarray:
    """Returns whether boxes [n, 4] are too small for any anchor at any position: bool [n].

    IoU is at most the smaller area over the larger.
    """
    least = box_sides(levels.anchors, levels.image_size).prod(axis=1).min() * threshold
    return box_sides(boxes, levels.image_size).prod(axis=1) < least


def too_long(boxes: np.ndarray, levels: Levels, threshold: float) -> np.ndarray:
    """Returns whether boxes [n, 4] are too elongated for the anchors' ratios: bool [n].

    A box whose aspect ratio is k times an anchor's has IoU 1 / (2 √k − 1) with it at the best
    size (a side between the box's two) and position. It misses the threshold t if
    √k > (1 + 1 / t) / 2.
    """
    height, width = np.maximum(box_sides(boxes, levels.image_size), 1e-9).T
    longest = max((r for level in levels.ratios for r in level), default=1.0)
    factor = np.maximum(height / width, width / height) / max(longest, 1.0)
    return np.sqrt(factor) > (1 + 1 / threshold) / 2


def what_if(
    config: ml_collections.ConfigDict,
    boxes: np.ndarray,
    augmented: np.ndarray,
    first_percents: tuple[float, ...],
) -> list[WhatIf]:
    """Returns the share of boxes reached if the anchors started at other sizes, by SSD's rule.

    SSD's rule: the first level has its own size p; the others rise evenly from 2·p to the last
    level's max size. At p = 10 these are the published sizes for VOC.

    Args:
        config: a run's config.
        boxes: float32 [K, 4].
        augmented: float32 [K', 4].
        first_percents: the sizes p to try; those that do not fit the recipe are skipped.
    """
    count, last = len(config.anchors.min_percent), config.anchors.max_percent[-1]
    outcomes = []
    for first in track(first_percents, len(first_percents), "other anchors", "size"):
        if count < 3 or first * config.image_size < 200 or 2 * first >= last:
            continue  # an anchor below two pixels, or no room above it
        rising = np.linspace(2 * first, last, count).round(1).tolist()
        sizes = {"min_percent": (first, *rising[:-1]), "max_percent": tuple(rising)}
        anchors = make_levels(config, **sizes).anchors
        shares = [
            share(_best_iou(anchors, some) >= config.loss.match_iou) for some in (boxes, augmented)
        ]
        outcomes.append(WhatIf(**sizes, reached=shares[0], reached_augmented=shares[1]))
    return outcomes


def _best_iou(anchors: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Returns the best IoU of each box with any anchor, [K]."""
    best = np.zeros(len(boxes), np.float32)
    for first in range(0, len(boxes), _ROWS):
        some = np.zeros((_ROWS, 4), np.float32)
        rows = boxes[first : first + _ROWS]
        some[: len(rows)] = rows
        best[first : first + _ROWS] = _max_iou(anchors, some)[: len(rows)]
    return best


@jax.jit
def _max_iou(anchors: jax.Array, boxes: jax.Array) -> jax.Array:
    return jnp.max(box_ops.iou(boxes, anchors), axis=1)


def _reached(study: DataSetStudy) -> tuple[float, float]:
    """Returns the share of the boxes that reach an anchor, before and after augmentation."""
    before, after = study.before.reached(study.threshold), study.after.reached(study.threshold)
    return share(before), share(after)


def _examples(study: DataSetStudy, unreached: np.ndarray) -> list[BoxExample]:
    fit, census = study.before, study.census
    image, best = census.table.image, fit.best.max(axis=1)
    examples = []
    for k in unreached[np.argsort(best[unreached], kind="stable")][:_LISTED]:
        box = int(fit.source[k])
        height, width = box_sides(fit.boxes[k : k + 1], study.image_size)[0].tolist()
        examples.append(
            BoxExample(
                int(image[box]),
                box,
                study.place(image[box]),
                census.class_names[fit.labels[k] - 1],
                height,
                width,
                float(best[k]),
                int(fit.positives[k]),
            )
        )
    return examples


def _typed(values: tuple[float, ...]) -> str:
    """As typed on the command line: (7,14,32.2)."""
    return "(" + ",".join(f"{v:g}" for v in values) + ")"
