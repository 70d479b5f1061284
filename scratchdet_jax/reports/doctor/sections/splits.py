"""Images and boxes by split, and what splits share."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from scratchdet_jax.errors import plural
from scratchdet_jax.reports.doctor.census import Census, select_images
from scratchdet_jax.reports.doctor.study import DataSetStudy
from scratchdet_jax.reports.page.tables import Bold, Cell, Meter
from scratchdet_jax.reports.page.wording import Finding, percent

_FEW_IMAGES = 1000


class Overlap(NamedTuple):
    """Images that two splits share, byte for byte.

    Attributes:
        first: name of a split.
        second: name of another.
        shared: number of distinct images.
        contained: "first" if the second contains all of the first, "second", "both" or "".
        by_design: the containing split is made of others (trainval = train + val).
    """

    first: str
    second: str
    shared: int
    contained: str
    by_design: bool

    def sentence(self) -> str:
        """Returns the overlap in words."""
        shared = plural(self.shared, "image")
        if self.contained == "both":
            return f"{self.first} and {self.second} contain the same {shared}."
        if self.contained:
            inner, outer = self.first, self.second
            if self.contained == "second":
                inner, outer = outer, inner
            why = " (it is a union of other splits)" if self.by_design else ""
            return f"{outer} contains all {shared} of {inner}{why}."
        return f"{self.first} and {self.second} share {shared}."


class SplitCounts(NamedTuple):
    """One split: images, scored boxes by class, ignored boxes by class."""

    name: str
    images: int
    boxes: list[int]
    ignored: list[int]
    without_boxes: int
    ignored_only: int


class Splits(NamedTuple):
    """Images and boxes by split; `images` are distinct, `decoded` of them were decoded."""

    splits: list[SplitCounts]
    overlaps: list[Overlap]
    images: int
    decoded: int

    @classmethod
    def measure(cls, study: DataSetStudy) -> "Splits":
        """Counts every split, and compares splits by their images' bytes."""
        return cls(
            [_count(study.census, name) for name in study.census.split_names],
            overlaps(study.census.contents()),
            len(study.images),
            len(study.decoded),
        )

    def findings(self, study: DataSetStudy) -> Iterator[Finding]:
        """Leaks between splits, and a small training split."""
        sizes = {split.name: split.images for split in self.splits}
        for o in self.overlaps:
            if o.by_design:
                continue
            share = o.shared / max(min(sizes[o.first], sizes[o.second]), 1)
            yield Finding(
                "problem",
                1 + share,
                f"{o.first} and {o.second} share {plural(o.shared, 'image')}, byte for byte "
                f"({percent(share)} of the smaller): evaluating on one after training on the other "
                "measures memorisation.",
                "Remove the shared images from one of the two splits.",
            )
        train = "train" if "train" in sizes else self.splits[0].name
        if sizes[train] < _FEW_IMAGES:
            yield Finding(
                "note",
                0.0,
                f"{train} has {plural(sizes[train], 'image')}; detectors trained from random "
                "initialisation usually need thousands.",
                "Start with a narrow model and mild cropping, as configs/voc_folder.py does.",
            )

    @property
    def any_ignored(self) -> bool:
        """Returns whether a split has difficult or crowd boxes."""
        return any(sum(split.ignored) for split in self.splits)

    def rows(self, study: DataSetStudy) -> list[list[Cell]]:
        """Returns images and boxes by split, ignored boxes in brackets; with a bar per class."""
        splits = self.splits
        rows: list[list[Cell]] = [
            ["", *(split.name for split in splits), "share of boxes"],
            ["images", *(f"{split.images:,}" for split in splits), ""],
            ["without boxes", *(f"{split.without_boxes:,}" for split in splits), ""],
        ]
        if self.any_ignored:
            rows.append(["only ignored", *(f"{split.ignored_only:,}" for split in splits), ""])
        total = [self._count(sum(s.boxes), sum(s.ignored)) for s in splits]
        rows.append([Bold("boxes"), *total, ""])
        counts = np.bincount(study.table.labels, minlength=len(study.class_names) + 1)[1:]
        for n, name in enumerate(study.class_names):
            cells = [self._count(split.boxes[n], split.ignored[n]) for split in splits]
            rows.append([name, *cells, Meter(counts[n] / max(np.max(counts), 1))])
        return rows

    def _count(self, boxes: int, ignored: int) -> str:
        return f"{boxes:,} ({ignored:,})" if self.any_ignored else f"{boxes:,}"


def overlaps(splits: dict[str, set[Any]]) -> list[Overlap]:
    """Returns the overlaps of splits, given as sets of their images' digests."""
    found = []
    names = list(splits)
    for n, first in enumerate(names):
        for second in names[n + 1 :]:
            a, b = splits[first], splits[second]
            if not a & b:
                continue
            contained = {(True, True): "both", (True, False): "first", (False, True): "second"}
            inside = contained.get((a <= b, b <= a), "")
            outer = {"first": second, "second": first}.get(inside)
            design = outer is not None and _is_made_of_others(outer, splits)
            found.append(Overlap(first, second, len(a & b), inside, design))
    return found


def _is_made_of_others(name: str, splits: dict[str, set[Any]]) -> bool:
    """Returns whether a split is the union of two or more smaller ones, as trainval is."""
    union = splits[name]
    parts = [s for other, s in splits.items() if other != name and s < union and s]
    return len(parts) >= 2 and set().union(*parts) == union


def _count(census: Census, name: str) -> SplitCounts:
    own = np.flatnonzero([look.split == name for look in census.looks])
    table, _ = select_images(census.table, own)

    def by_class(chosen: np.ndarray) -> list[int]:
        length = len(census.class_names) + 1
        return np.bincount(table.labels[chosen], minlength=length)[1:].tolist()

    return SplitCounts(
        name,
        len(table.counts),
        by_class(~table.ignore),
        by_class(table.ignore),
        without_boxes=int((table.counts == 0).sum()),
        ignored_only=int(table.only_ignored.sum()),
    )
