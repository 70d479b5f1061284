"""Defects of the boxes as stored, and what preparing the data set found."""

import collections
from collections.abc import Iterator
from typing import NamedTuple

from scratchdet_jax.errors import plural
from scratchdet_jax.reports.doctor.study import DataSetStudy
from scratchdet_jax.reports.page.wording import Finding, Named, verb


class Defects(NamedTuple):
    """Defects by kind, in words: of the boxes of distinct images, and of the source files."""

    defects: dict[str, Named]
    prepared: dict[str, Named]

    @classmethod
    def measure(cls, study: DataSetStudy) -> "Defects":
        """Sorts the defects by kind, the most common first."""
        found: dict[str, list[str]] = collections.defaultdict(list)
        for look in (study.census.looks[i] for i in study.images):
            for kind, detail in look.defects:
                found[kind].append(f"{look.place}, {detail}")
        ranked = sorted(found.items(), key=lambda item: -len(item[1]))
        return cls({kind: Named.first(texts) for kind, texts in ranked}, study.opened.prepared)

    def findings(self, study: DataSetStudy) -> Iterator[Finding]:
        """Finds degenerate boxes, repeated boxes, and what preparing found."""
        total = max(len(study.table.labels), 1)
        repeated = {k: n for k, n in self.defects.items() if k.startswith("the same box")}
        wrong = {k: n for k, n in self.defects.items() if k not in repeated}
        if wrong:
            count = sum(named.count for named in wrong.values())
            kinds = ", ".join(f"{named.count} × {kind}" for kind, named in wrong.items())
            yield Finding(
                "problem",
                count / total,
                f"{plural(count, 'stored box')} {verb(count, 'is')} degenerate or out of range: "
                f"{kinds}.",
                "Boxes are clipped to the image, and dropped if nothing remains; fix the "
                "annotations.",
            )
        for kind, named in repeated.items():
            yield Finding(
                "warning",
                named.count / total,
                f"In {plural(named.count, 'case')}, an image has {kind}.",
                "Only one of the two gets the best anchors; remove the other.",
            )
        if self.prepared:
            count = sum(named.count for named in self.prepared.values())
            kinds = "; ".join(f"{named.count} × {kind}" for kind, named in self.prepared.items())
            yield Finding(
                "note",
                count / max(len(study.images), 1),
                f"Preparing the data set found {plural(count, 'defect')}: {kinds}.",
                "The details are in report.json beside the prepared data.",
            )
