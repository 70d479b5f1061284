"""How well the anchors fit the ground truth, which boxes none reaches, and what others would."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from markupsafe import Markup

from scratchdet_jax.config import defaults
from scratchdet_jax.config.recipes import load_recipe
from scratchdet_jax.errors import plural
from scratchdet_jax.progress import track
from scratchdet_jax.reports.doctor.boxes import size_axis, size_edges
from scratchdet_jax.reports.doctor.fit import Fit, Levels, best_iou, box_sides, make_levels, share
from scratchdet_jax.reports.doctor.study import DRAWS, DataSetStudy
from scratchdet_jax.reports.page import tables
from scratchdet_jax.reports.page.charts import bar_chart
from scratchdet_jax.reports.page.tables import Cell, Finding, first_few, number, percent, several

_LOSS = 0.10  # share of the boxes that augmentation may cost
_FIRST_PERCENTS = (3.0, 4.0, 5.0, 7.0, 10.0, 14.0)  # anchor sizes to try
_LISTED = 12  # boxes in the table
_UNREACHED = 0.10  # share of a class's boxes that is worth a warning
_GAIN = 0.03  # gain required to recommend other anchors


class WhatIf(NamedTuple):
    """Another set of anchor sizes, and the share of the boxes it reaches, plain and augmented."""

    min_percent: tuple[float, ...]
    max_percent: tuple[float, ...]
    reached: float
    reached_augmented: float


def measure(study: DataSetStudy) -> dict[str, Any]:
    """Summarises the fits of the decoded images' boxes, finds reasons, and tries other sizes.

    Returns:
        `reached_by_size`: `edges` of sqrt(area) in pixels, and the share of the boxes of each size
        that reach an anchor `before` and `after` augmentation, NaN without boxes; `levels`; the
        `summarize` of all boxes `before` and `after`; `draws`; `emptied`, the share of the draws
        in which augmentation removes all boxes. Before augmentation: the worst `unreached` boxes,
        the `unreached_count`, the shares of them that are too small (`unreached_small`) and too
        elongated (`unreached_thin`) for any anchor; `hopeless`, the share of each class's boxes
        that is too small. `what_if`: other sizes.
    """
    levels, threshold, classes = study.levels, study.threshold, len(study.class_names)
    fit, edges = study.before, size_edges(study.image_size)
    unreached = np.flatnonzero(~fit.reached(threshold))
    small = too_small(fit.boxes, levels, threshold)
    counts = np.diff((0, *levels.ends)).tolist()
    names = ("map", "sizes", "ratios", "anchors")
    figures = zip(levels.maps, levels.sizes, levels.ratios, counts, strict=True)
    return {
        "reached_by_size": {
            "edges": edges.tolist(),
            "before": _reach_by_size(study.before, study, edges),
            "after": _reach_by_size(study.after, study, edges),
        },
        "levels": [dict(zip(names, level, strict=True)) for level in figures],
        "before": summarize(study.before, threshold, classes),
        "after": summarize(study.after, threshold, classes),
        "draws": DRAWS,
        "emptied": share((study.boxes_left == 0).ravel()),
        "unreached": _examples(study, unreached),
        "unreached_count": len(unreached),
        "unreached_small": share(small[unreached]),
        "unreached_thin": share(too_long(fit.boxes[unreached], levels, threshold)),
        "hopeless": [share(small[fit.labels == label]) for label in range(1, classes + 1)],
        "what_if": what_if(study.config, fit.boxes, study.after.boxes[::DRAWS], _FIRST_PERCENTS),
    }


def summarize(fit: Fit, threshold: float, class_count: int) -> dict[str, Any]:
    """Returns shares of the boxes in [0, 1], by level and by class; NaN if there is no box.

    `reached` is the share whose best IoU over all levels reaches the threshold,
    `reached_by_level` the same for each level's anchors alone, `home` the share whose best anchor
    is on the level, `forced` the share trained only by the bipartite match, `untrained` the share
    matched to no anchor. `reached_by_class_and_level` is [C][L].
    """
    reached = fit.best >= threshold
    overall = fit.reached(threshold)
    home = np.argmax(fit.best, axis=1)
    classes = [fit.labels == label for label in range(1, class_count + 1)]
    return {
        "count": len(fit.labels),
        "reached": share(overall),
        "reached_by_level": [share(column) for column in reached.T],
        "home": [share(home == n) for n in range(fit.best.shape[1])],
        "forced": share((fit.positives > 0) & (fit.reaching == 0)),
        "untrained": share(fit.positives == 0),
        "anchors_per_box": share(fit.positives),
        "count_by_class": [int(own.sum()) for own in classes],
        "reached_by_class": [share(overall[own]) for own in classes],
        "reached_by_class_and_level": [[share(c) for c in reached[own].T] for own in classes],
    }


def _reach_by_size(fit: Fit, study: DataSetStudy, edges: np.ndarray) -> list[float]:
    size = np.sqrt(box_sides(fit.boxes, study.image_size).prod(axis=1)).clip(edges[0], edges[-1])
    counts = np.histogram(size, edges)[0]
    hits = np.histogram(size[fit.reached(study.threshold)], edges)[0]
    return [h / n if n else math.nan for h, n in zip(hits, counts, strict=True)]


def _examples(study: DataSetStudy, unreached: np.ndarray) -> list[dict[str, Any]]:
    """Returns the boxes with the smallest IoU; sides in pixels of the network input.

    `image` and `box` are indices in the study, `anchors` the number matched to the box.
    """
    fit, best = study.before, study.before.best.max(axis=1)
    examples = []
    for k in unreached[np.argsort(best[unreached], kind="stable")][:_LISTED]:
        box = int(fit.source[k])
        image = int(study.records.image[box])
        height, width = box_sides(fit.boxes[k : k + 1], study.image_size)[0].tolist()
        examples.append(
            {
                "image": image,
                "box": box,
                "file": study.looks[image].place,
                "class_name": study.class_names[fit.labels[k] - 1],
                "height": height,
                "width": width,
                "best_iou": float(best[k]),
                "anchors": int(fit.positives[k]),
            }
        )
    return examples


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

    `boxes` and `augmented` are float32 [K, 4]. `first_percents` are the sizes p to try; those that
    do not fit the recipe are skipped.
    """
    count, last = len(config.anchors.min_percent), config.anchors.max_percent[-1]
    outcomes = []
    for first in track(first_percents, len(first_percents), "other anchors", "size"):
        if count < 3 or first * config.image_size < 200 or 2 * first >= last:
            continue  # an anchor below two pixels, or no room above it
        rising = np.linspace(2 * first, last, count).round(1).tolist()
        sizes = {"min_percent": (first, *rising[:-1]), "max_percent": tuple(rising)}
        anchors = make_levels(config, **sizes).anchors
        shares = [share(best_iou(anchors, b) >= config.loss.match_iou) for b in (boxes, augmented)]
        outcomes.append(WhatIf(**sizes, reached=shares[0], reached_augmented=shares[1]))
    return outcomes


def better_sizes(figures: Mapping[str, Any]) -> WhatIf | None:
    """Returns other anchor sizes that would reach clearly more boxes, if there are any."""
    now = figures["before"]["reached"] + figures["after"]["reached"]
    best = max(figures["what_if"], key=lambda w: w.reached + w.reached_augmented, default=None)
    if best is None or not best.reached + best.reached_augmented >= now + 2 * _GAIN:
        return None
    return best


def findings(study: DataSetStudy, figures: Mapping[str, Any]) -> Iterator[Finding]:
    """Finds boxes that no anchor trains or reaches, tiny ones, and what augmentation costs."""
    before, after = figures["before"], figures["after"]
    if (untrained := before["untrained"]) > 0:
        count = round(untrained * before["count"])
        yield Finding(
            "warning",
            untrained,
            f"{several(count, 'box', 'is')} trained by no anchor.",
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
    lost = before["reached"] - after["reached"]
    if lost >= _LOSS:
        yield Finding(
            "warning",
            lost,
            f"After augmentation only {percent(after['reached'])} of the boxes reach an anchor "
            f"({percent(before['reached'])} before): expansion shrinks objects.",
            "Lower config.augment.expand_max_ratio or expand_probability, or start with smaller "
            "anchors.",
        )
    emptied = figures["emptied"]
    if emptied >= 0.01:
        yield Finding(
            "note",
            emptied,
            f"Augmentation removes every box in {percent(emptied)} of the draws: such an image "
            "contributes nothing to the loss of that step.",
        )
    missed = [
        (1 - reached, n)
        for n, reached in enumerate(before["reached_by_class"])
        if 1 - reached >= _UNREACHED
    ]
    if missed:
        yield _unreached(study, figures, sorted(missed, reverse=True))


def _unreached(
    study: DataSetStudy, figures: Mapping[str, Any], missed: list[tuple[float, int]]
) -> Finding:
    """Words the shares of the classes' boxes that reach no anchor, the largest first."""
    text = f"Boxes that reach no anchor at IoU {study.threshold:g}: "
    text += "; ".join(
        _class_missed(study, part, n, figures["hopeless"][n]) for part, n in missed[:3]
    )
    if len(missed) > 3:
        rest = [f"{study.class_names[n]} {percent(part)}" for part, n in missed[3:]]
        text += f"; also {first_few(rest, 5)}"
    count, small, thin = (figures[f"unreached_{name}"] for name in ("count", "small", "thin"))
    if best := better_sizes(figures):
        now = figures["before"]["reached"], figures["after"]["reached"]
        low, high = (
            "(" + ",".join(f"{value:g}" for value in sizes) + ")" for sizes in best[:2]
        )  # as typed on the command line
        advice = (
            f"{percent(best.reached)} instead of {percent(now[0])} of all boxes would reach an "
            f"anchor (after augmentation {percent(best.reached_augmented)} instead of "
            f"{percent(now[1])}) with --config.anchors.min_percent='{low}' "
            f"--config.anchors.max_percent='{high}'"
        )
    elif thin > small:
        advice = "Add larger ratios to config.anchors.aspect_ratios, or accept the loss."
    else:
        advice = (
            "Other anchor sizes at this image size do not clearly help (see the table); a larger "
            "config.image_size would."
        )
    return Finding(
        "warning",
        missed[0][0],
        f"{text}. Of the {plural(count, 'box')} that {'reaches' if count == 1 else 'reach'} none, "
        f"{percent(small)} are too small for any anchor and {percent(thin)} too elongated; the "
        "others fall between the anchors' sizes or positions. Each trains only its single best "
        "anchor.",
        advice,
    )


def _class_missed(study: DataSetStudy, missed: float, n: int, hopeless: float) -> str:
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
    if hopeless > 0.01:
        text += f"; {percent(hopeless)} are too small to reach it at any position"
    return text + ")"


def chart(study: DataSetStudy, figures: Mapping[str, Any]) -> Markup:
    """Draws the share of the boxes of each size that reach an anchor."""
    title = "share of boxes that reach an anchor, by size"
    edges, before, after = figures["reached_by_size"].values()
    return bar_chart(edges, before, after, title, *size_axis(study.levels))


def level_rows(figures: Mapping[str, Any]) -> list[list[str]]:
    """Returns the shares by level, and over all levels."""
    before, after, levels = figures["before"], figures["after"], figures["levels"]
    reached = ["reached", "best there", "augmented", "best there"]
    rows = [["level", "map", "sizes, px", "anchors", *reached]]
    for n, level in enumerate(levels):
        shape = ["{}×{}".format(*level["map"]), "{}–{}".format(*level["sizes"])]
        row = [str(n + 1), *shape, f"{level['anchors']:,}"]
        for fit in (before, after):
            row += [tables.share(fit["reached_by_level"][n]), percent(fit["home"][n])]
        rows.append(row)
    anchors = f"{sum(level['anchors'] for level in levels):,}"
    for title, total, *cells in (
        (Cell("all", "bold"), anchors, *(tables.share(f["reached"]) for f in (before, after))),
        ("only by forced match", "", *(percent(f["forced"]) for f in (before, after))),
        ("by no anchor", "", *(percent(f["untrained"]) for f in (before, after))),
        ("anchors per box", "", *(number(f["anchors_per_box"], 1) for f in (before, after))),
    ):
        rows.append([title, "", "", total, cells[0], "", cells[1], ""])
    return rows


def class_rows(study: DataSetStudy, figures: Mapping[str, Any]) -> list[list[str]]:
    """Returns the shares by class and level."""
    before, after = figures["before"], figures["after"]
    levels = [f"level {n + 1}" for n in range(len(figures["levels"]))]
    rows = [["class", "all levels", *levels, "augmented"]]
    for n, name in enumerate(study.class_names):
        by_level = before["reached_by_class_and_level"][n]
        shares = (before["reached_by_class"][n], *by_level, after["reached_by_class"][n])
        rows.append([name, *map(tables.share, shares)])
    return rows


def unreached_rows(figures: Mapping[str, Any]) -> list[list[str]]:
    """Returns the worst boxes."""
    shape = ("width × height, px", "width / height")
    rows = [["image", "class", *shape, "best IoU", "anchors trained"]]
    for b in figures["unreached"]:
        size = f"{b['width']:.1f}×{b['height']:.1f}"
        aspect = b["width"] / max(b["height"], 1e-9)
        row = [b["class_name"], size, f"{aspect:.2f}", f"{b['best_iou']:.2f}", str(b["anchors"])]
        rows.append([Cell(b["file"], "text"), *row])
    return rows


def what_if_rows(figures: Mapping[str, Any]) -> list[list[str]]:
    """Returns other anchor sizes, and what they would reach."""
    rows = [["first level at", "min_percent", "reached", "augmented"]]
    for w in figures["what_if"]:
        sizes = [f"{p:g}" for p in w.min_percent]
        shares = map(tables.share, (w.reached, w.reached_augmented))
        rows.append([f"{sizes[0]} %", ", ".join(sizes), *shares])
    return rows


def recipe_text(
    path: Path, advice: WhatIf, dataset: str, recipe: str, config: ml_collections.ConfigDict
) -> str:
    """Returns a recipe (`--write_anchors`) that starts from another one and sets its anchors.

    `recipe` is the one that was examined, "" for the defaults; `config` is its config with the
    overrides of the command line, which the new recipe keeps.
    """
    before = defaults.flatten(load_recipe(recipe) if recipe else defaults.get_config())
    fields = {
        name: value for name, value in defaults.flatten(config).items() if value != before[name]
    }
    fields |= {
        "name": path.stem,
        "anchors.min_percent": advice.min_percent,
        "anchors.max_percent": advice.max_percent,
    }
    load = f"load_recipe({recipe!r})" if recipe else "defaults.get_config()"
    module = "config.recipes import load_recipe" if recipe else "config import defaults"
    settings = "".join(f"    config.{name} = {value!r}\n" for name, value in fields.items())
    return (
        f'"""Anchor sizes for {_plain(dataset)}, as the doctor advised: '
        f"{percent(advice.reached)} of the boxes reach an anchor.\n\n"
        f'python train.py --config={_plain(str(path))}\n"""\n\n'
        f"import ml_collections\n\nfrom scratchdet_jax.{module}\n\n\n"
        "def get_config() -> ml_collections.ConfigDict:\n"
        f'    """{_plain(recipe) or "The defaults"}, with other anchors."""\n'
        f"    config = {load}\n{settings}    return config\n"
    )


def _plain(text: str) -> str:
    """Returns a text that cannot end the docstring that it is in."""
    return text.replace("\\", "/").replace('"', "'")
