"""What a constant box scores on the split for evaluation."""

from collections.abc import Iterator
from typing import NamedTuple

from scratchdet_jax.evaluation.detections import ImageGroundTruth
from scratchdet_jax.evaluation.evaluator import METRIC_LABELS
from scratchdet_jax.reports.baseline import ConstantBox, constant_box
from scratchdet_jax.reports.doctor.census import Census
from scratchdet_jax.reports.doctor.study import DataSetStudy
from scratchdet_jax.reports.page.tables import Bold, Cell
from scratchdet_jax.reports.page.wording import Finding, number, percent

_HIGH = 0.2  # mAP
_USUAL = ("val", "validation", "valid", "test")


class SplitScore(NamedTuple):
    """The score of `box` on a split; `label` is the metric in words."""

    split: str
    label: str
    box: ConstantBox

    def sentence(self) -> str:
        """Returns the figure in words."""
        return (
            f"One box per class, in the same place on every image of {self.split}, scores "
            f"mAP {number(self.box.mean, 2)} ({self.label})."
        )


class ConstantScore(NamedTuple):
    """The constant box; None without a split that has boxes to score."""

    constant_box: SplitScore | None

    @classmethod
    def measure(cls, study: DataSetStudy) -> "ConstantScore":
        """Scores the split of `config.data.eval`, or the one most likely meant for evaluation."""
        scored = {
            look.split for look in study.census.looks if min(look.size) and not look.ignore.all()
        }
        split = eval_split(
            study.dataset, study.config.data.eval, [s for s in study.opened.splits if s in scored]
        )
        metric = study.config.eval.metric
        if split is None or metric == "none":
            return cls(None)
        return cls(SplitScore(split, METRIC_LABELS[metric], _score(study.census, split, metric)))

    def findings(self, study: DataSetStudy) -> Iterator[Finding]:
        """Finds a constant box that scores well."""
        found = self.constant_box
        if found and found.box.mean >= _HIGH:
            yield Finding(
                "warning",
                found.box.mean,
                f"{found.sentence()} A good mAP there says little about whether a detector finds "
                "objects.",
                "Compare every mAP with this figure, and evaluate on images whose objects are "
                "smaller or in more places.",
            )

    def rows(self) -> list[list[Cell]]:
        """Returns the AP and the box of each class."""
        rows: list[list[Cell]] = [["class", "AP", "top", "left", "bottom", "right"]]
        if self.constant_box is None:
            return rows
        box = self.constant_box.box
        for name, place in box.boxes.items():
            ap = box.per_class[name]
            sides = ["–"] * 4 if place is None else [percent(side) for side in place]
            rows.append([name, "–" if ap is None else f"{ap:.3f}", *sides])
        rows.append([Bold("mean"), number(box.mean, 3), *[""] * 4])
        return rows


def eval_split(dataset: str, spec: str, names: list[str]) -> str | None:
    """Chooses the split for evaluation.

    Args:
        dataset: the data set on the command line.
        spec: `config.data.eval`; it is followed if it names a split of this data set.
        names: the splits that can be scored.

    Returns:
        The split, or one with a usual name, or else the first that is not "train"; None without
        any.
    """
    owner, _, split = spec.rpartition(":")
    own = [split] if owner in ("", dataset.partition(":")[0]) else []
    others = sorted(names, key=lambda name: name == "train")
    return next((name for name in (spec, *own, *_USUAL, *others) if name in names), None)


def _score(census: Census, split: str, metric: str) -> ConstantBox:
    looks = [look for look in census.looks if look.split == split and min(look.size) > 0]
    truth = {
        str(look.position): ImageGroundTruth(look.boxes * (look.size * 2), look.labels, look.ignore)
        for look in looks
    }
    sizes = {str(look.position): look.size for look in looks}
    return constant_box(truth, sizes, census.class_names, metric)
