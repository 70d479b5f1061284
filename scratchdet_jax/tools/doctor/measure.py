"""From what was read, decoded and fitted to the report."""

import collections
import math
from typing import NamedTuple

import numpy as np

from scratchdet_jax.tools.doctor.census import Census, Closer, image_of_box, size_on_canvas
from scratchdet_jax.tools.doctor.duplicates import near_pairs, overlaps
from scratchdet_jax.tools.doctor.fit import Fit, Levels, WhatIf, summarize
from scratchdet_jax.tools.doctor.report import (
    BoxExample,
    ClassCounts,
    Group,
    Histogram,
    ImageSizes,
    LevelInfo,
    Named,
    Pair,
    ReachBySize,
    Report,
    SplitCounts,
)

_NAMED = 10  # files named of a kind
_LISTED = 12  # boxes and image sizes listed


class Recipe(NamedTuple):
    """What of the recipe is reported."""

    name: str
    canvas: tuple[int, int]
    max_boxes: int
    threshold: float
    train_on_ignored: bool


def make_report(
    dataset: str,
    recipe: Recipe,
    levels: Levels,
    census: Census,
    closer: Closer,
    before: Fit,
    after: Fit,
    boxes_left: np.ndarray,
    alternatives: list[WhatIf],
    prepared: dict[str, Named],
) -> Report:
    """Measures all that has been read.

    Args:
        dataset: as the user named it.
        recipe: see there.
        levels: the anchors.
        census: of all records.
        closer: of the images decoded.
        before: the anchors' fit to boxes of the census's table (`source` is the index there).
        after: the same after augmentation.
        boxes_left: int [draws, images], boxes that augmentation left of images that had some.
        alternatives: other anchor sizes.
        prepared: what preparation left out or repaired, by kind.
    """
    distinct = np.flatnonzero(census.distinct)
    on_distinct = census.distinct[image_of_box(census.table)]
    counts = np.diff(census.table.starts)
    ignored = _ignored_counts(census)
    sides = box_sides(census.table.boxes[on_distinct], levels.image_size)
    without = distinct[counts[distinct] == 0]
    only = distinct[(counts[distinct] > 0) & (ignored[distinct] == counts[distinct])]
    many = distinct[counts[distinct] > recipe.max_boxes]
    order = distinct[np.argsort(-counts[distinct], kind="stable")]
    unreached = np.flatnonzero(before.best.max(axis=1) < recipe.threshold)
    names = census.class_names
    return Report(
        dataset=dataset,
        recipe=recipe.name,
        image_size=levels.image_size,
        canvas=tuple(recipe.canvas),
        max_boxes=recipe.max_boxes,
        threshold=recipe.threshold,
        train_on_ignored=recipe.train_on_ignored,
        class_names=names,
        splits=_split_counts(census, ignored),
        overlaps=overlaps(_contents_by_split(census)),
        images=len(distinct),
        decoded=len(closer.images),
        classes=_class_counts(census, on_distinct, levels),
        sizes=_image_sizes(census, recipe.canvas),
        size_histogram=size_histogram(
            sides, box_sides(after.boxes, levels.image_size), levels.image_size
        ),
        aspect_histogram=aspect_histogram(sides, box_sides(after.boxes, levels.image_size)),
        count_histogram=count_histogram(counts[distinct]),
        reached_by_size=reach_by_size(before, after, recipe.threshold, levels.image_size),
        without_boxes=_named(census, without),
        ignored_only=_named(census, only),
        undecodable=_named_with_reason(census, closer),
        too_many_boxes=_named(census, many),
        most_boxes=int(counts.max(initial=0)),
        defects=_defects_by_kind(census),
        prepared=prepared,
        groups=duplicate_groups(census),
        near=near_duplicates(census, closer),
        crowded=[(int(i), place(census, i), int(counts[i])) for i in order[:6] if counts[i]],
        levels=_level_infos(levels),
        before=summarize(before, recipe.threshold, len(names)),
        after=summarize(after, recipe.threshold, len(names)),
        draws=len(boxes_left),
        emptied=float(np.mean(boxes_left == 0)) if boxes_left.size else float("nan"),
        unreached=_box_examples(census, before, unreached, levels.image_size),
        unreached_count=len(unreached),
        unreached_small=_share(too_small(before.boxes[unreached], levels, recipe.threshold)),
        unreached_thin=_share(too_long(before.boxes[unreached], levels, recipe.threshold)),
        hopeless=_hopeless(before, levels, recipe.threshold, len(names)),
        what_if=alternatives,
    )


def place(census: Census, image: int) -> str:
    """SPLIT/FILE of an image."""
    return f"{census.split_names[census.split[image]]}/{census.filenames[image]}"


def box_sides(boxes: np.ndarray, image_size: int) -> np.ndarray:
    """Height and width [n, 2] in pixels of the network input."""
    return (boxes[:, 2:] - boxes[:, :2]) * image_size


def reach_by_size(before: Fit, after: Fit, threshold: float, image_size: int) -> ReachBySize:
    """In the bins of size_histogram."""
    edges = _size_edges(image_size)
    shares = []
    for fit in (before, after):
        size = np.sqrt(box_sides(fit.boxes, image_size).prod(axis=1)).clip(edges[0], edges[-1])
        reached = fit.best.max(axis=1) >= threshold
        counts = np.histogram(size, edges)[0]
        hits = np.histogram(size[reached], edges)[0]
        shares.append([h / n if n else float("nan") for h, n in zip(hits, counts, strict=True)])
    return ReachBySize(edges.tolist(), *shares)


def _size_edges(image_size: int) -> np.ndarray:
    return image_size * 2.0 ** np.arange(-6, 0.01, 0.25)


def size_histogram(before: np.ndarray, after: np.ndarray, image_size: int) -> Histogram:
    """Of sqrt(area) in pixels, four bins to an octave, from a 64th of the image on."""
    edges = _size_edges(image_size)
    values = [np.clip(np.sqrt(s.prod(axis=1)), edges[0], image_size) for s in (before, after)]
    return _histogram(edges, *values)


def aspect_histogram(before: np.ndarray, after: np.ndarray) -> Histogram:
    """Of width over height in the network input, four bins to an octave, from 1/8 to 8."""
    edges = 2.0 ** np.arange(-3, 3.01, 0.25)
    values = []
    for sides in (before, after):
        aspect = sides[:, 1] / np.maximum(sides[:, 0], 1e-9)
        values.append(np.clip(aspect, edges[0], edges[-1]))
    return _histogram(edges, *values)


def count_histogram(counts: np.ndarray) -> Histogram:
    """Of boxes per image: whole numbers, in some 30 bins, the rarest hundredth in the last."""
    usual = np.percentile(counts, 99) if len(counts) else 0
    step = max(1, math.ceil((usual + 1) / 30))
    edges = np.arange(0, max(min(counts.max(initial=0), 30 * step), 1) + step + 1, step)
    return _histogram(edges, np.minimum(counts, edges[-2]), None)


def duplicate_groups(census: Census) -> list[Group]:
    """Images with the same bytes, but for those of splits that contain one another by design.

    A file that is both in train and in trainval is one image; it is listed when it is there twice
    under two names, twice in one split, or in two splits that merely overlap.
    """
    designed = {
        frozenset((o.first, o.second)) for o in overlaps(_contents_by_split(census)) if o.by_design
    }
    same = collections.defaultdict(list)
    for i, content in enumerate(census.content.tolist()):
        same[content].append(i)
    groups = []
    for members in same.values():
        kept: list[int] = []
        for i in members:
            if not any(_same_by_design(census, i, other, designed) for other in kept):
                kept.append(i)
        if len(kept) > 1:
            splits = {census.split[i] for i in kept}
            groups.append(Group(kept, [place(census, i) for i in kept], len(splits) > 1))
    return sorted(groups, key=lambda group: not group.across_splits)


def near_duplicates(census: Census, closer: Closer) -> list[Pair]:
    """Pairs of decoded images that look alike but are not the same bytes."""
    first = {int(census.content[i]): i for i in reversed(sorted(closer.signatures))}
    chosen = sorted(first.values())
    home = _home_splits(census)
    pairs = []
    for a, b, bits in near_pairs([closer.signatures[i] for i in chosen]):
        i, j = chosen[a], chosen[b]
        across = not home[census.content[i]] & home[census.content[j]]
        pairs.append(Pair(i, j, (place(census, i), place(census, j)), bits, across))
    return sorted(pairs, key=lambda pair: not pair.across_splits)


def _home_splits(census: Census) -> dict[int, set[int]]:
    """For each content, the splits it is in."""
    home = collections.defaultdict(set)
    for content, split in zip(census.content.tolist(), census.split.tolist(), strict=True):
        home[content].add(split)
    return home


def _same_by_design(census: Census, i: int, j: int, designed: set[frozenset[str]]) -> bool:
    """Whether two occurrences of the same bytes are one image listed in nested splits."""
    if census.filenames[i] != census.filenames[j] or census.split[i] == census.split[j]:
        return False
    names = {census.split_names[census.split[k]] for k in (i, j)}
    return frozenset(names) in designed


def _contents_by_split(census: Census) -> dict[str, set[int]]:
    return {
        name: set(census.content[census.split == n].tolist())
        for n, name in enumerate(census.split_names)
    }


def _ignored_counts(census: Census) -> np.ndarray:
    image = image_of_box(census.table)
    return np.bincount(image[census.table.ignore], minlength=len(census.filenames))


def _split_counts(census: Census, ignored: np.ndarray) -> list[SplitCounts]:
    image, labels = image_of_box(census.table), census.table.labels
    counts, classes = np.diff(census.table.starts), len(census.class_names)
    found = []
    for n, name in enumerate(census.split_names):
        inside = census.split[image] == n
        by_class = [
            np.bincount(labels[inside & flag], minlength=classes + 1)[1:].tolist()
            for flag in (~census.table.ignore, census.table.ignore)
        ]
        own = census.split == n
        some = own & (counts > 0)
        found.append(
            SplitCounts(
                name,
                int(own.sum()),
                *by_class,
                without_boxes=int((own & (counts == 0)).sum()),
                ignored_only=int((some & (ignored == counts)).sum()),
            )
        )
    return found


def _class_counts(census: Census, on_distinct: np.ndarray, levels: Levels) -> list[ClassCounts]:
    table, image = census.table, image_of_box(census.table)
    size = np.sqrt(box_sides(table.boxes, levels.image_size).prod(axis=1))
    cell = levels.image_size / max(levels.maps[0])
    found = []
    for label, name in enumerate(census.class_names, start=1):
        own = on_distinct & (table.labels == label)
        sizes = size[own]
        low, median, high = np.percentile(sizes, (5, 50, 95)) if len(sizes) else [float("nan")] * 3
        found.append(
            ClassCounts(
                name,
                len(np.unique(image[own])),
                int((own & ~table.ignore).sum()),
                int((own & table.ignore).sum()),
                float(median),
                float(low),
                float(high),
                below_smallest=_share(sizes < levels.sizes[0][0]),
                tiny=_share(sizes < cell),
            )
        )
    return found


def _image_sizes(census: Census, canvas: tuple[int, int]) -> ImageSizes:
    known = census.distinct & (census.sizes.min(axis=1) > 0)
    sizes = census.sizes[known]
    if not len(sizes):
        return ImageSizes([], 0, (0, 0), (0, 0), float("nan"), 0)
    kinds, numbers = np.unique(sizes, axis=0, return_counts=True)
    order = np.argsort(-numbers, kind="stable")[:_LISTED]
    area = kinds.astype(np.int64).prod(axis=1)
    return ImageSizes(
        common=[(*kinds[i].tolist(), int(numbers[i])) for i in order],
        kinds=len(kinds),
        smallest=tuple(kinds[np.argmin(area)].tolist()),
        largest=tuple(kinds[np.argmax(area)].tolist()),
        reduced=float(np.mean(np.any(size_on_canvas(sizes, canvas) < sizes, axis=1))),
        turned=int(census.turned[census.distinct].sum()),
    )


def _named(census: Census, images: np.ndarray) -> Named:
    return Named(len(images), [place(census, i) for i in images[:_NAMED]])


def _named_with_reason(census: Census, closer: Closer) -> Named:
    broken = dict(census.unreadable) | dict(closer.broken)
    examples = [f"{place(census, i)}: {why}" for i, why in sorted(broken.items())[:_NAMED]]
    return Named(len(broken), examples)


def _defects_by_kind(census: Census) -> dict[str, Named]:
    found: dict[str, list[str]] = collections.defaultdict(list)
    for defect in census.defects:
        found[defect.kind].append(f"{place(census, defect.image)}, {defect.detail}")
    ranked = sorted(found.items(), key=lambda item: -len(item[1]))
    return {kind: Named(len(texts), texts[:_NAMED]) for kind, texts in ranked}


def _level_infos(levels: Levels) -> list[LevelInfo]:
    counts = np.diff((0, *levels.ends)).tolist()
    rows = zip(levels.maps, levels.sizes, levels.ratios, counts, strict=True)
    return [LevelInfo(*row) for row in rows]


def too_small(boxes: np.ndarray, levels: Levels, threshold: float) -> np.ndarray:
    """Whether boxes [n, 4] are too small for any anchor, wherever it stood: bool [n].

    IoU is at most the smaller area over the larger.
    """
    least = box_sides(levels.anchors, levels.image_size).prod(axis=1).min() * threshold
    return box_sides(boxes, levels.image_size).prod(axis=1) < least


def too_long(boxes: np.ndarray, levels: Levels, threshold: float) -> np.ndarray:
    """Whether boxes [n, 4] are too long for the anchors' ratios at any size and place: bool [n].

    A box k times as long in proportion as an anchor has IoU 1 / (2 √k − 1) with it at the best
    size (a side between the box's two) and place, and so misses the threshold t where
    √k > (1 + 1 / t) / 2.
    """
    height, width = np.maximum(box_sides(boxes, levels.image_size), 1e-9).T
    longest = max((r for level in levels.ratios for r in level), default=1.0)
    factor = np.maximum(height / width, width / height) / max(longest, 1.0)
    return np.sqrt(factor) > (1 + 1 / threshold) / 2


def _hopeless(fit: Fit, levels: Levels, threshold: float, class_count: int) -> list[float]:
    """Share of each class that is too small for any anchor."""
    small = too_small(fit.boxes, levels, threshold)
    return [_share(small[fit.labels == label]) for label in range(1, class_count + 1)]


def _box_examples(
    census: Census, fit: Fit, chosen: np.ndarray, image_size: int
) -> list[BoxExample]:
    image = image_of_box(census.table)
    best = fit.best.max(axis=1)
    examples = []
    for k in chosen[np.argsort(best[chosen], kind="stable")][:_LISTED]:
        box = int(fit.source[k])
        height, width = box_sides(fit.boxes[k : k + 1], image_size)[0].tolist()
        examples.append(
            BoxExample(
                int(image[box]),
                box,
                place(census, image[box]),
                census.class_names[fit.labels[k] - 1],
                height,
                width,
                float(best[k]),
                int(fit.positives[k]),
            )
        )
    return examples


def _histogram(edges: np.ndarray, before: np.ndarray, after: np.ndarray | None) -> Histogram:
    counts = np.histogram(before, edges)[0].tolist()
    later = None if after is None else np.histogram(after, edges)[0].tolist()
    return Histogram(np.asarray(edges, float).tolist(), counts, later)


def _share(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
