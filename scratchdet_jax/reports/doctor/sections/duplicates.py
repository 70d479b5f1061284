"""Images with the same bytes, and images that look alike."""

import collections
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from scratchdet_jax.datasets.duplicates import COLOUR_LEVELS, HASH_BITS, near_pairs
from scratchdet_jax.reports.doctor.census import Census, Look
from scratchdet_jax.reports.doctor.sections.splits import overlaps
from scratchdet_jax.reports.doctor.study import Study
from scratchdet_jax.reports.page.layout import Named, soft
from scratchdet_jax.reports.page.pictures import photo, picture_figure
from scratchdet_jax.reports.page.wording import Finding, plural, verb

_PAIRS_SHOWN = 8


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
    def measure(cls, study: Study) -> "Duplicates":
        """Compares all images by their bytes, and the decoded ones by their signatures."""
        return cls(_groups(study.census), _near(study))

    def findings(self, study: Study) -> Iterator[Finding]:
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

    def to_text(self, study: Study) -> Iterator[str]:
        """Names of the groups and pairs."""
        yield "\nDUPLICATES"
        groups = Named.first([" = ".join(group.names) for group in self.groups])
        yield from groups.to_text("of the same bytes")
        pairs = Named.first([f"{' ~ '.join(p.names)} ({p.bits} bits)" for p in self.near])
        yield from pairs.to_text(
            f"nearly the same (dHash within {HASH_BITS} of 64 bits, thumbnails within "
            f"{COLOUR_LEVELS:g} levels of 255)"
        )

    def to_html(self, study: Study) -> Iterator[str]:
        """Pictures of the groups and pairs, side by side."""
        yield f"<h3>The same bytes: {len(self.groups):,}</h3>"
        yield _pictures(study, self.groups)
        yield f"<h3>Nearly the same: {plural(len(self.near), 'pair')}</h3>"
        yield soft(
            f"64-bit difference hashes that differ in at most {HASH_BITS} bits, and 16×16 "
            f"thumbnails in at most {COLOUR_LEVELS:g} levels of 255 on average. This finds "
            "images that were re-encoded, resized or taken a moment later, but not rotated, "
            "mirrored or cropped ones."
        )
        yield _pictures(
            study, [Group([p.first, p.second], list(p.names), p.across_splits) for p in self.near]
        )


def _pictures(study: Study, groups: Sequence[Group]) -> str:
    """The first two pictures of the first groups."""
    if not groups:
        return ""
    parts = []
    for group in groups[:_PAIRS_SHOWN]:
        shown = zip(group.images[:2], group.names, strict=False)
        pictures = "".join(picture_figure(photo(study.example(i), name, 260)) for i, name in shown)
        label = "<b>across splits</b>" if group.across_splits else "within a split"
        parts.append(f'<div>{soft(label)}<div class="pair">{pictures}</div></div>')
    more = len(groups) - len(parts)
    rest = soft(f"… and {more:,} more") if more else ""
    return f'<div class="pairs">{"".join(parts)}</div>{rest}'


def _groups(census: Census) -> list[Group]:
    """Images with the same bytes, except where splits contain one another by design.

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
    """Pairs of splits of which one contains the other by design."""
    return {frozenset((o.first, o.second)) for o in overlaps(census.contents()) if o.by_design}


def _near(study: Study) -> list[Pair]:
    """Pairs of decoded images that look alike but do not have the same bytes.

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
