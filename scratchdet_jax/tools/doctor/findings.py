"""What the measurements mean and what to do about it, in plain sentences, gravest first."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from scratchdet_jax.tools.doctor.report import Report

SEVERITIES = ("problem", "warning", "note")
"""Training stops or its results are wrong; it will do worse than it could; good to know."""

_UNREACHED = 0.10  # share of a class's boxes without a fitting anchor that is worth a warning
_IMBALANCE = 10.0  # boxes of the commonest class to those of the rarest
_FEW_BOXES = 50  # of a class
_FEW_IMAGES = 1000
_GAIN = 0.03  # what other anchors must bring to be advised
_LOSS = 0.10  # what augmentation may cost


class Finding(NamedTuple):
    """One finding.

    Attributes:
        severity: one of SEVERITIES.
        weight: about the share of images, boxes or classes concerned; ranks within a severity.
        text: what was found, a sentence.
        advice: what to do; may be empty.
    """

    severity: str
    weight: float
    text: str
    advice: str


def find(report: Report) -> list[Finding]:
    """All findings, ranked."""
    rules = (_files, _leaks, _copies, _boxes, _classes, _anchors, _augmentation, _images)
    found = [finding for rule in rules for finding in rule(report)]
    return sorted(found, key=lambda f: (SEVERITIES.index(f.severity), -f.weight))


def percent(share: float) -> str:
    """A share as text: "31 %", "0.4 %", ">99.9 %", "–" for NaN."""
    if math.isnan(share):
        return "–"
    value = 100 * share
    if 0 < value < 0.1:
        return "<0.1 %"
    if 99.9 < value < 100:
        return ">99.9 %"
    return f"{value:.1f} %" if 0 < value < 9.95 or 99 < value < 100 else f"{value:.0f} %"


def whole(value: float) -> str:
    """A number without decimals, "–" for NaN."""
    return "–" if math.isnan(value) else f"{value:.0f}"


def decimal(value: float) -> str:
    """A number with one decimal, "–" for NaN."""
    return "–" if math.isnan(value) else f"{value:.1f}"


def plural(count: int, noun: str) -> str:
    """A count and its noun: "1 image", "2 images", "3 boxes", "2 classes"."""
    many = noun + ("es" if noun.endswith(("s", "x")) else "s")
    return f"{count:,} {noun if count == 1 else many}"


def percents(values: tuple[float, ...]) -> str:
    """As it is typed on the command line: (7,14,32.2)."""
    return "(" + ",".join(f"{v:g}" for v in values) + ")"


def _files(report: Report) -> Iterator[Finding]:
    if broken := report.undecodable.count:
        yield Finding(
            "problem",
            1 + broken / report.images,
            f"{plural(broken, 'image')} cannot be decoded: training stops at the first "
            f"({report.undecodable.examples[0]}).",
            "Replace or remove the files and prepare the data set again.",
        )
    if many := report.too_many_boxes.count:
        yield Finding(
            "problem",
            1 + many / report.images,
            f"{plural(many, 'image')} {_has(many)} more boxes than config.data.max_boxes = "
            f"{report.max_boxes}: training stops there.",
            f"Set --config.data.max_boxes={report.most_boxes}.",
        )
    if report.prepared:
        total = sum(named.count for named in report.prepared.values())
        kinds = "; ".join(f"{named.count} × {kind}" for kind, named in report.prepared.items())
        yield Finding(
            "note",
            total / max(report.images, 1),
            f"Preparing the data set found {plural(total, 'defect')}: {kinds}.",
            "The details are in report.json beside the prepared data.",
        )


def _leaks(report: Report) -> Iterator[Finding]:
    for o in report.overlaps:
        if o.by_design:
            continue
        sizes = {split.name: split.images for split in report.splits}
        share = o.shared / max(min(sizes[o.first], sizes[o.second]), 1)
        yield Finding(
            "problem",
            1 + share,
            f"{o.first} and {o.second} share {plural(o.shared, 'image')}, byte for byte "
            f"({percent(share)} of the smaller): an evaluation on one after training on the "
            "other measures memory.",
            "Take them out of one of the two.",
        )
    across = sum(pair.across_splits for pair in report.near)
    if across:
        yield Finding(
            "warning",
            across / report.images,
            f"{plural(across, 'pair')} of images in different splits {_look(across)} the same to "
            "a coarse comparison.",
            "Look at the pairs; photos of one scene belong in one split.",
        )


def _copies(report: Report) -> Iterator[Finding]:
    within = sum(not group.across_splits for group in report.groups)
    near = sum(not pair.across_splits for pair in report.near)
    if within:
        yield Finding(
            "warning",
            within / report.images,
            f"{plural(within, 'image')} {_is(within)} in a split more than once, under several "
            "names.",
            "Keep one of each, unless the weight is meant; compare their boxes.",
        )
    if near:
        yield Finding(
            "note",
            near / report.images,
            f"{plural(near, 'pair')} of images within a split {_look(near)} the same to a coarse "
            "comparison.",
            "",
        )


def _boxes(report: Report) -> Iterator[Finding]:
    total = max(sum(c.boxes + c.ignored for c in report.classes), 1)
    wrong = {k: n for k, n in report.defects.items() if not k.startswith("the same box")}
    if wrong:
        count = sum(named.count for named in wrong.values())
        kinds = ", ".join(f"{named.count} × {kind}" for kind, named in wrong.items())
        yield Finding(
            "problem",
            count / total,
            f"{plural(count, 'stored box')} {_is(count)} degenerate or out of range: {kinds}.",
            "Boxes are clipped to the image, and left out where nothing remains; mend the "
            "annotations.",
        )
    for kind, named in report.defects.items():
        if kind.startswith("the same box"):
            yield Finding(
                "warning",
                named.count / total,
                f"{plural(named.count, 'time')}, an image has {kind}.",
                "Only one of the two gets the best anchors; remove the other.",
            )
    ignored = sum(c.ignored for c in report.classes)
    if ignored:
        use = "trained on" if report.train_on_ignored else "not trained on"
        yield Finding(
            "note",
            ignored / total,
            f"{plural(ignored, 'box')} ({percent(ignored / total)}) {_is(ignored)} marked "
            f"difficult or crowd: {use} (config.data.train_on_ignored), and not scored by VOC's "
            "rules.",
            "",
        )


def _classes(report: Report) -> Iterator[Finding]:
    counted = [c for c in report.classes if c.boxes + c.ignored]
    absent = [c.name for c in report.classes if not c.boxes + c.ignored]
    if absent:
        yield Finding(
            "problem",
            len(absent) / len(report.classes),
            f"{plural(len(absent), 'class')} {_has(len(absent))} no box at all: "
            f"{', '.join(absent[:8])}{', …' if len(absent) > 8 else ''}.",
            "Remove them from the class list, or check their spelling in the annotations.",
        )
    if len(counted) > 1:
        most = max(counted, key=lambda c: c.boxes + c.ignored)
        least = min(counted, key=lambda c: c.boxes + c.ignored)
        ratio = (most.boxes + most.ignored) / (least.boxes + least.ignored)
        if ratio >= _IMBALANCE:
            share = (most.boxes + most.ignored) / sum(c.boxes + c.ignored for c in counted)
            yield Finding(
                "warning",
                min(ratio / 100, 1.0),
                f"{most.name} has {ratio:.0f} times as many boxes as {least.name} "
                f"({percent(share)} of all are {most.name}): the loss is mostly about it.",
                f"More images with {least.name} help most; judge by each class's AP, not by the "
                "mean alone.",
            )
    few = [c for c in counted if c.boxes < _FEW_BOXES]
    if few:
        names = ", ".join(f"{c.name} {c.boxes}" for c in few[:6])
        yield Finding(
            "warning",
            len(few) / len(report.classes),
            f"{plural(len(few), 'class')} {_has(len(few))} fewer than {_FEW_BOXES} boxes that "
            f"count ({names}{', …' if len(few) > 6 else ''}).",
            "Too few to learn from scratch; expect a low AP there.",
        )


def _anchors(report: Report) -> Iterator[Finding]:
    before = report.before
    missed = [
        (1 - share, n) for n, share in enumerate(before.reached_by_class) if 1 - share >= _UNREACHED
    ]
    if missed:
        missed.sort(reverse=True)
        text = f"Boxes that reach no anchor at IoU {report.threshold:g}: "
        text += "; ".join(_class_missed(report, share, n) for share, n in missed[:3])
        if len(missed) > 3:
            rest = (f"{report.class_names[n]} {percent(share)}" for share, n in missed[3:8])
            text += f"; also {', '.join(rest)}{', …' if len(missed) > 8 else ''}"
        yield Finding(
            "warning",
            missed[0][0],
            f"{text}. Of all {plural(report.unreached_count, 'box')} that reach none, "
            f"{percent(report.unreached_small)} are too small for any anchor and "
            f"{percent(report.unreached_thin)} too long in proportion; the others fall between "
            "the anchors' sizes or places. Each trains only its single best anchor.",
            best_alternative(report) or _other_anchors(report),
        )
    if before.untrained > 0:
        count = round(before.untrained * before.count)
        yield Finding(
            "warning",
            before.untrained,
            f"{plural(count, 'box')} {_is(count)} trained by no anchor at all.",
            "They lie in a crowd whose anchors are taken, or overlap none: more or smaller "
            "anchors are needed.",
        )
    tiny = sum(c.tiny * (c.boxes + c.ignored) for c in report.classes if c.tiny > 0)
    share = tiny / max(sum(c.boxes + c.ignored for c in report.classes), 1)
    if share >= 0.01:
        cell = report.image_size / max(report.levels[0].map)
        yield Finding(
            "warning",
            share,
            f"{percent(share)} of the boxes are smaller than one cell of the finest map "
            f"({cell:.0f} px): there is little left of such objects to see.",
            "Raise config.image_size, or cut the photos into tiles.",
        )


def _class_missed(report: Report, share: float, n: int) -> str:
    """One class: how many of its boxes reach no anchor, and whether their size explains it."""
    c, smallest = report.classes[n], report.levels[0].sizes[0]
    text = f"{percent(share)} of {c.name}"
    if c.below_smallest >= share / 2:
        text += (
            f" ({percent(c.below_smallest)} of its boxes are smaller than the smallest anchor, "
            f"{smallest} px of {report.image_size}; the median is {c.size_median:.0f} px"
        )
        if report.hopeless[n] > 0.01:
            text += f"; {percent(report.hopeless[n])} are too small to reach it from any place"
        text += ")"
    return text


def _other_anchors(report: Report) -> str:
    """Advice where other sizes by SSD's rule would not help clearly."""
    if report.unreached_thin > report.unreached_small:
        return "Add larger ratios to config.anchors.aspect_ratios, or accept the loss."
    return (
        "Other anchor sizes at this image size do not help clearly (see the table); a larger "
        "config.image_size would."
    )


def best_alternative(report: Report) -> str:
    """Advice to use other anchor sizes, if some would reach clearly more boxes."""
    best = max(report.what_if, key=lambda w: w.reached + w.reached_augmented, default=None)
    plain, augmented = report.before.reached, report.after.reached
    if best is None or not best.reached + best.reached_augmented >= plain + augmented + 2 * _GAIN:
        return ""
    return (
        f"{percent(best.reached)} instead of {percent(plain)} of all boxes would reach an anchor "
        f"(after augmentation {percent(best.reached_augmented)} instead of {percent(augmented)}) "
        f"with --config.anchors.min_percent='{percents(best.min_percent)}' "
        f"--config.anchors.max_percent='{percents(best.max_percent)}'"
    )


def _augmentation(report: Report) -> Iterator[Finding]:
    lost = report.before.reached - report.after.reached
    if lost >= _LOSS:
        yield Finding(
            "warning",
            lost,
            f"After augmentation only {percent(report.after.reached)} of the boxes reach an anchor "
            f"({percent(report.before.reached)} before): expansion makes objects smaller.",
            "Lower config.augment.expand_max_ratio or expand_probability, or begin with smaller "
            "anchors.",
        )
    if report.emptied >= 0.01:
        yield Finding(
            "note",
            report.emptied,
            f"Augmentation cuts every box away in {percent(report.emptied)} of the draws: such an "
            "image adds nothing to the loss of that step.",
            "",
        )


def _images(report: Report) -> Iterator[Finding]:
    empty = report.without_boxes.count
    if empty:
        share = empty / report.images
        yield Finding(
            "warning" if share > 0.2 else "note",
            share,
            f"{plural(empty, 'image')} ({percent(share)}) {_has(empty)} no box. Hard negatives are "
            "counted per positive of the same image, so nothing is learnt from these but "
            "BatchNorm's statistics.",
            "Check that they are meant to be empty.",
        )
    if report.sizes.turned:
        yield Finding(
            "note",
            report.sizes.turned / report.images,
            f"{plural(report.sizes.turned, 'image')} {_is(report.sizes.turned)} turned by the "
            "EXIF tag; boxes refer to the image as displayed.",
            "",
        )
    train = next((s for s in report.splits if s.name == "train"), report.splits[0])
    if train.images < _FEW_IMAGES:
        yield Finding(
            "note",
            0.0,
            f"{train.name} has {plural(train.images, 'image')}; detectors trained from random "
            "initialisation are usually given thousands.",
            "Begin with a narrow model and mild cropping, as configs/voc_folder.py does.",
        )


def _has(count: int) -> str:
    return "has" if count == 1 else "have"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _look(count: int) -> str:
    return "looks" if count == 1 else "look"
