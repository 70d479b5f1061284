"""Images with the same bytes, and images that look alike."""

import collections
from collections.abc import Iterator
from typing import NamedTuple

from scratchdet_jax.datasets.duplicates import near_pairs
from scratchdet_jax.errors import plural
from scratchdet_jax.reports.doctor.census import Census, Look
from scratchdet_jax.reports.doctor.sections.splits import overlaps
from scratchdet_jax.reports.doctor.study import DataSetStudy
from scratchdet_jax.reports.page.wording import Finding, verb


class Group(NamedTuple):
    """Images with the same bytes: census indices, names with splits."""

    images: list[int]
    names: list[str]
    across_splits: bool


class Pair(NamedTuple):
    """Two images that look alike: census indices, names with splits, differing bits of 64."""

    first: int
    second: int
    names: tuple[str, str]
    bits: int
    across_splits: bool


class Duplicates(NamedTuple):
    """Images that occur twice, those across splits first."""

    groups: list[Group]
    near: list[Pair]

    @classmethod
    def measure(cls, study: DataSetStudy) -> "Duplicates":
        """Compares all images by their bytes, and the decoded ones by their signatures."""
        return cls(_groups(study.census), _near(study))

    def findings(self, study: DataSetStudy) -> Iterator[Finding]:
        """Copies within splits, and similar images; copies across splits are overlaps."""
        total = len(study.images)
        across = sum(pair.across_splits for pair in self.near)
        if across:
            yield Finding(
                "warning",
                across / total,
                f"{plural(across, 'pair')} of images in different splits {verb(across, 'looks')} "
                "alike in a coarse comparison.",
                "Check the pairs; photos of one scene belong in one split.",
            )
        within = sum(not group.across_splits for group in self.groups)
        if within:
            yield Finding(
                "warning",
                within / total,
                f"{plural(within, 'image')} {verb(within, 'is')} in a split more than once, under "
                "different names.",
                "Keep one of each unless the extra weight is intended; compare their boxes.",
            )
        near = len(self.near) - across
        if near:
            yield Finding(
                "note",
                near / total,
                f"{plural(near, 'pair')} of images within a split {verb(near, 'looks')} alike "
                "in a coarse comparison.",
            )


def _groups(census: Census) -> list[Group]:
    """Finds images with the same bytes, except where splits contain one another by design.

    A file that is both in train and in trainval is one image; it is listed when it is there twice
    under two names, twice in one split, or in two splits that merely overlap.
    """
    looks, nested = census.looks, _nested(census)

    def one_image(a: Look, b: Look) -> bool:
        return a.filename == b.filename and frozenset((a.split, b.split)) in nested

    same = collections.defaultdict(list)
    for i, look in enumerate(looks):
        same[look.content].append(i)
    groups = []
    for members in same.values():
        kept: list[int] = []
        for i in members:
            if not any(one_image(looks[i], looks[other]) for other in kept):
                kept.append(i)
        if len(kept) > 1:
            splits = {looks[i].split for i in kept}
            groups.append(Group(kept, [looks[i].place for i in kept], len(splits) > 1))
    return sorted(groups, key=lambda group: not group.across_splits)


def _nested(census: Census) -> set[frozenset[str]]:
    """Returns pairs of splits of which one contains the other by design."""
    return {frozenset((o.first, o.second)) for o in overlaps(census.contents()) if o.by_design}


def _near(study: DataSetStudy) -> list[Pair]:
    """Finds pairs of decoded images that look alike but do not have the same bytes.

    A pair is across splits if its images are in different splits, even if one of the two is in the
    other's split as well; splits that contain one another by design do not count.
    """
    nested = _nested(study.census)
    looks, signatures = study.census.looks, study.signatures
    first = {looks[i].content: i for i in reversed(sorted(signatures))}
    chosen = sorted(first.values())
    splits = collections.defaultdict(set)  # that hold an image
    for look in looks:
        splits[look.content].add(look.split)
    pairs = []
    for a, b, bits in near_pairs([signatures[i] for i in chosen]):
        i, j = chosen[a], chosen[b]
        across = any(
            s != t and frozenset((s, t)) not in nested
            for s in splits[looks[i].content]
            for t in splits[looks[j].content]
        )
        pairs.append(Pair(i, j, (looks[i].place, looks[j].place), bits, across))
    return sorted(pairs, key=lambda pair: not pair.across_splits)
