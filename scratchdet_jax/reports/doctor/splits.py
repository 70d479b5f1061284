"""What the splits hold, images that occur twice, and what one box scores where runs are scored."""

import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from scratchdet_jax.datasets.duplicates import near_pairs
from scratchdet_jax.errors import plural
from scratchdet_jax.evaluation.detections import ImageGroundTruth
from scratchdet_jax.evaluation.evaluator import METRIC_LABELS
from scratchdet_jax.reports.baseline import ConstantBox, constant_box
from scratchdet_jax.reports.doctor.study import DataSetStudy, Look
from scratchdet_jax.reports.page.tables import Cell, Finding, meter, number, percent, several

_FEW_IMAGES = 1000
_HIGH = 0.2  # mAP
_USUAL = ("val", "validation", "valid", "test")


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


def measure(study: DataSetStudy) -> dict[str, Any]:
    """Counts every split, and compares splits and images.

    Returns:
        `splits`: images, scored and ignored boxes by class, images without boxes and with ignored
        ones only; `overlaps`; `images`, the distinct ones, and `decoded` of them; `groups` of
        images with the same bytes and pairs `near` each other, by index, those across splits
        first; `constant_box`, None without a split that has boxes to score.
    """
    contents, nested = _contents(study.looks), nested_splits(study.looks)
    return {
        "splits": [_count(study, name) for name in contents],
        "overlaps": overlaps(contents),
        "images": len(study.images),
        "decoded": len(study.decoded),
        "groups": same_images(study.looks, nested),
        "near": near_images(study, nested),
        "constant_box": _constant_box(study),
    }


def findings(study: DataSetStudy, figures: Mapping[str, Any]) -> Iterator[Finding]:
    """Finds leaks between splits, a small training split, copies, and a high constant box."""
    sizes = {split["name"]: split["images"] for split in figures["splits"]}
    for o in figures["overlaps"]:
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
    train = "train" if "train" in sizes else next(iter(sizes))
    if sizes[train] < _FEW_IMAGES:
        yield Finding(
            "note",
            0.0,
            f"{train} has {plural(sizes[train], 'image')}; detectors trained from random "
            "initialisation usually need thousands.",
            "Start with a narrow model and mild cropping, as configs/voc_folder.py does.",
        )
    yield from _copies(len(study.images), figures["groups"], figures["near"])
    yield from constant_findings(figures["constant_box"])


def constant_findings(score: SplitScore | None) -> Iterator[Finding]:
    """Finds a constant box that scores well."""
    if score and score.box.mean >= _HIGH:
        yield Finding(
            "warning",
            score.box.mean,
            f"{score.sentence()} A good mAP there says little about whether a detector finds "
            "objects.",
            "Compare every mAP with this figure, and evaluate on images whose objects are smaller "
            "or in more places.",
        )


def _copies(
    total: int, groups: Sequence[Mapping[str, Any]], near: Sequence[Mapping[str, Any]]
) -> Iterator[Finding]:
    """Finds copies within splits, and similar images; copies across splits are overlaps."""
    across = sum(pair["across_splits"] for pair in near)
    if across:
        yield Finding(
            "warning",
            across / total,
            f"{plural(across, 'pair')} of images in different splits "
            f"{'looks' if across == 1 else 'look'} alike in a coarse comparison.",
            "Check the pairs; photos of one scene belong in one split.",
        )
    within = sum(not group["across_splits"] for group in groups)
    if within:
        yield Finding(
            "warning",
            within / total,
            f"{several(within, 'image', 'is')} in a split more than once, under different names.",
            "Keep one of each unless the extra weight is intended; compare their boxes.",
        )
    if alike := len(near) - across:
        yield Finding(
            "note",
            alike / total,
            f"{plural(alike, 'pair')} of images within a split "
            f"{'looks' if alike == 1 else 'look'} alike in a coarse comparison.",
        )


def any_ignored(figures: Mapping[str, Any]) -> bool:
    """Returns whether a split has difficult or crowd boxes."""
    return any(sum(split["ignored"]) for split in figures["splits"])


def rows(study: DataSetStudy, figures: Mapping[str, Any]) -> list[list[str]]:
    """Returns images and boxes by split, ignored boxes in brackets; with a bar per class."""
    splits, brackets = figures["splits"], any_ignored(figures)

    def boxes(count: int, ignored: int) -> str:
        return f"{count:,} ({ignored:,})" if brackets else f"{count:,}"

    table = [
        ["", *(split["name"] for split in splits), "share of boxes"],
        ["images", *(f"{split['images']:,}" for split in splits), ""],
        ["without boxes", *(f"{split['without_boxes']:,}" for split in splits), ""],
    ]
    if brackets:
        table.append(["only ignored", *(f"{split['ignored_only']:,}" for split in splits), ""])
    total = [boxes(sum(split["boxes"]), sum(split["ignored"])) for split in splits]
    table.append([Cell("boxes", "bold"), *total, ""])
    counts = np.bincount(study.table.labels, minlength=len(study.class_names) + 1)[1:]
    for n, name in enumerate(study.class_names):
        cells = [boxes(split["boxes"][n], split["ignored"][n]) for split in splits]
        table.append([name, *cells, meter(counts[n] / max(np.max(counts), 1))])
    return table


def constant_rows(box: ConstantBox) -> list[list[str]]:
    """Returns the AP and the box of each class."""
    table: list[list[str]] = [["class", "AP", "top", "left", "bottom", "right"]]
    for name, place in box.boxes.items():
        sides = ["–"] * 4 if place is None else [percent(side) for side in place]
        table.append([name, number(box.per_class[name], 3), *sides])
    return [*table, [Cell("mean", "bold"), number(box.mean, 3), *[""] * 4]]


def overlaps(splits: Mapping[str, set[Any]]) -> list[Overlap]:
    """Returns the overlaps of splits, given as sets of their images' digests.

    A split that is the union of two or more smaller ones contains them by design.
    """
    found = []
    for (first, a), (second, b) in itertools.combinations(splits.items(), 2):
        if not a & b:
            continue
        contained = "both" if a == b else "first" if a < b else "second" if b < a else ""
        outer = max(a, b, key=len)
        parts = [part for part in splits.values() if part and part < outer]
        union = len(parts) > 1 and set().union(*parts) == outer
        by_design = union and contained in ("first", "second")
        found.append(Overlap(first, second, len(a & b), contained, by_design))
    return found


def nested_splits(looks: Sequence[Look]) -> set[frozenset[str]]:
    """Returns pairs of splits of which one contains the other by design."""
    return {frozenset((o.first, o.second)) for o in overlaps(_contents(looks)) if o.by_design}


def same_images(looks: Sequence[Look], nested: set[frozenset[str]]) -> list[dict[str, Any]]:
    """Finds images with the same bytes, except where splits contain one another by design.

    A file that is both in train and in trainval is one image; it is listed when it is there twice
    under two names, twice in one split, or in two splits that merely overlap.
    """

    def one_image(a: Look, b: Look) -> bool:
        return a.filename == b.filename and frozenset((a.split, b.split)) in nested

    same: dict[bytes, list[int]] = collections.defaultdict(list)
    for i, look in enumerate(looks):
        if not any(one_image(look, looks[other]) for other in same[look.content]):
            same[look.content].append(i)
    groups = [
        {
            "images": members,
            "names": [looks[i].place for i in members],
            "across_splits": len({looks[i].split for i in members}) > 1,
        }
        for members in same.values()
        if len(members) > 1
    ]
    return sorted(groups, key=lambda group: not group["across_splits"])


def near_images(study: DataSetStudy, nested: set[frozenset[str]]) -> list[dict[str, Any]]:
    """Finds pairs of decoded images that look alike but do not have the same bytes.

    A pair is across splits if its images are in different splits, even if one of the two is in the
    other's split as well; splits that contain one another by design do not count.
    """
    looks, signatures = study.looks, study.signatures
    first = {looks[i].content: i for i in sorted(signatures, reverse=True)}
    chosen = sorted(first.values())
    splits = collections.defaultdict(set)  # that hold an image
    for look in looks:
        splits[look.content].add(look.split)
    pairs = []
    for a, b, bits in near_pairs([signatures[i] for i in chosen]):
        i, j = chosen[a], chosen[b]
        both = itertools.product(splits[looks[i].content], splits[looks[j].content])
        pairs.append(
            {
                "first": i,
                "second": j,
                "names": (looks[i].place, looks[j].place),
                "bits": bits,
                "across_splits": any(s != t and frozenset((s, t)) not in nested for s, t in both),
            }
        )
    return sorted(pairs, key=lambda pair: not pair["across_splits"])


def _contents(looks: Iterable[Look]) -> dict[str, set[bytes]]:
    """Returns the digests of each split's images."""
    found = collections.defaultdict(set)
    for look in looks:
        found[look.split].add(look.content)
    return found


def _count(study: DataSetStudy, name: str) -> dict[str, Any]:
    own = np.flatnonzero([look.split == name for look in study.looks])
    table, _ = study.records.of_images(own)

    def by_class(chosen: np.ndarray) -> list[int]:
        length = len(study.class_names) + 1
        return np.bincount(table.labels[chosen], minlength=length)[1:].tolist()

    return {
        "name": name,
        "images": len(own),
        "boxes": by_class(~table.ignore),
        "ignored": by_class(table.ignore),
        "without_boxes": int((table.counts == 0).sum()),
        "ignored_only": int(table.only_ignored.sum()),
    }


def eval_split(dataset: str, spec: str, names: list[str]) -> str | None:
    """Chooses the split for evaluation.

    `spec` is `config.data.eval`, which is followed if it names a split of `dataset`; `names` are
    the splits that can be scored.

    Returns:
        The split, or one with a usual name, or else the first that is not "train"; None without
        any.
    """
    owner, _, split = spec.rpartition(":")
    own = [split] if owner in ("", dataset.partition(":")[0]) else []
    others = sorted(names, key=lambda name: name == "train")
    return next((name for name in (spec, *own, *_USUAL, *others) if name in names), None)


def _constant_box(study: DataSetStudy) -> SplitScore | None:
    """Scores the split of `config.data.eval`, or the one most likely meant for evaluation."""
    readable = [look for look in study.looks if min(look.size) > 0]
    scored = dict.fromkeys(look.split for look in readable if not look.ignore.all())
    split = eval_split(study.dataset, study.config.data.eval, list(scored))
    metric = study.config.eval.metric
    if split is None or metric == "none":
        return None
    own = {str(look.position): look for look in readable if look.split == split}
    truth = {
        name: ImageGroundTruth(look.boxes * (look.size * 2), look.labels, look.ignore)
        for name, look in own.items()
    }
    sizes = {name: look.size for name, look in own.items()}
    return SplitScore(
        split, METRIC_LABELS[metric], constant_box(truth, sizes, study.class_names, metric)
    )
