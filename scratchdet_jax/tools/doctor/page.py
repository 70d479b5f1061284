"""The report as one HTML page that stands by itself: inline style, drawings and pictures."""

import html
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from scratchdet_jax.tools.doctor.charts import bars_svg, shares
from scratchdet_jax.tools.doctor.duplicates import COLOUR_LEVELS, HASH_BITS
from scratchdet_jax.tools.doctor.findings import decimal, percent, plural, whole
from scratchdet_jax.tools.doctor.pictures import IGNORED, Picture
from scratchdet_jax.tools.doctor.report import Histogram, Named, Report
from scratchdet_jax.tools.doctor.style import CSS
from scratchdet_jax.tools.doctor.text import count_labels, overlap_sentence
from scratchdet_jax.tools.drawing import class_color

SECTIONS = {
    "findings": "Findings",
    "counts": "Images and boxes",
    "sizes": "Box sizes and shapes",
    "images": "Images",
    "defects": "Defects",
    "duplicates": "Duplicates",
    "crowded": "The most crowded images",
    "anchors": "Anchors and ground truth",
    "unreached": "Boxes that no anchor reaches",
    "samples": "What the network sees",
}
"""Anchor and title of every section of the page, in order."""

_e = html.escape


class Gallery(NamedTuple):
    """The pictures of a page; of a pair, a picture that could not be decoded is None."""

    crowded: list[Picture]
    unreached: list[Picture]
    groups: list[list[Picture | None]]
    near: list[list[Picture | None]]
    samples: list[Picture]


def to_html(report: Report, gallery: Gallery) -> str:
    """The whole page."""
    bodies = {
        "findings": _findings(report),
        "counts": _counts(report),
        "sizes": _sizes(report),
        "images": _images(report),
        "defects": _defects(report),
        "duplicates": _duplicates(report, gallery),
        "crowded": _crowded(report, gallery),
        "anchors": _anchors(report),
        "unreached": _unreached(report, gallery),
        "samples": _samples(report, gallery),
    }
    sections = "".join(
        f'<section id="{name}"><h2>{title}</h2>{"".join(bodies[name])}</section>'
        for name, title in SECTIONS.items()
    )
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in SECTIONS.items())
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_e(report.dataset)}: before training</title><style>{CSS}</style></head>"
        f"<body><main>{_header(report)}<nav>{links}</nav></header>{sections}"
        f'<p class="soft">Examined in {report.seconds:.0f} s.</p></main></body></html>\n'
    )


def _header(report: Report) -> str:
    boxes = sum(c.boxes + c.ignored for c in report.classes)
    facts = {
        "images": f"{report.images:,}",
        "boxes": f"{boxes:,}",
        "classes": str(len(report.class_names)),
        "reach an anchor": percent(report.before.reached),
        "after augmentation": percent(report.after.reached),
    }
    items = "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in facts.items())
    return (
        f"<header><h1>{_e(report.dataset)}</h1>"
        f'<p class="soft">Examined for the recipe {_e(report.recipe)}: network input '
        f"{report.image_size}×{report.image_size} px, canvas {report.canvas[1]}×"
        f"{report.canvas[0]}. An image that is in several splits counts once.</p>"
        f'<dl class="facts">{items}</dl>'
    )


def _findings(report: Report) -> Iterator[str]:
    if not report.findings:
        yield "<p>Nothing to mend.</p>"
        return
    items = "".join(
        f'<li class="{f.severity}"><b>{f.severity}</b>'
        f"<p>{_units(_e(f.text))} {_units(_flags(f.advice))}</p></li>"
        for f in report.findings
    )
    yield f'<ol class="findings">{items}</ol>'


def _units(text: str) -> str:
    """Text whose numbers stay on the line of their units."""
    return re.sub(r"(?<=\d) (?=(%|px|×))", "&nbsp;", text)


def _flags(text: str) -> str:
    """Text with command line flags set as code."""
    return re.sub(r"--config[\w.]+=\S*?(?=[,;.]?(\s|$))", r"<code>\g<0></code>", _e(text, False))


def _counts(report: Report) -> Iterator[str]:
    ignored = any(sum(split.ignored) for split in report.splits)
    rows = [[_e(n) for n in ["", *(s.name for s in report.splits), "share of boxes"]]]
    rows.append(["images", *(f"{s.images:,}" for s in report.splits), ""])
    rows.append(["without boxes", *(f"{s.without_boxes:,}" for s in report.splits), ""])
    if ignored:
        rows.append(["only ignored ones", *(f"{s.ignored_only:,}" for s in report.splits), ""])
    counts = [sum(s.boxes) for s in report.splits], [sum(s.ignored) for s in report.splits]
    rows.append(["<strong>boxes</strong>", *_with_ignored(*counts, ignored), ""])
    most = max((c.boxes + c.ignored for c in report.classes), default=0) or 1
    for n, c in enumerate(report.classes):
        counts = [s.boxes[n] for s in report.splits], [s.ignored[n] for s in report.splits]
        meter = f'<td class="meter"><i style="--share:{(c.boxes + c.ignored) / most:.4f}"></i></td>'
        rows.append([_e(c.name), *_with_ignored(*counts, ignored), meter])
    yield _table(rows)
    if ignored:
        yield '<p class="soft">In brackets: difficult or crowd boxes, besides.</p>'
    for overlap in report.overlaps:
        yield f"<p>{_e(overlap_sentence(overlap))}</p>"


def _with_ignored(boxes: Sequence[int], others: Sequence[int], show: bool) -> list[str]:
    pairs = zip(boxes, others, strict=True)
    return [f"{a:,}" + (f" ({b:,})" if show else "") for a, b in pairs]


def _sizes(report: Report) -> Iterator[str]:
    side = report.image_size
    ticks, marks = _size_ticks(side), _size_marks(report)
    charts = [
        (
            _histogram(report.size_histogram, "box sizes", ticks, marks, log=True),
            "Size: square root of the area, in pixels of the network input and in percent of its "
            "side. Dashed: the anchors' sizes.",
        ),
        (
            _histogram(
                report.aspect_histogram,
                "aspect ratios",
                [(2.0**k, f"{2**k}" if k >= 0 else f"1/{2**-k}") for k in range(-3, 4)],
                [(r, f"{r:.2g}") for r in _ratios(report)],
                log=True,
            ),
            "Aspect: width over height in the square network input. Dashed: the anchors' ratios.",
        ),
        (
            _histogram(report.count_histogram, "boxes per image", _count_ticks(report)),
            "Boxes per image.",
        ),
    ]
    figures = "".join(f"<figure>{s}<figcaption>{_e(c)}</figcaption></figure>" for s, c in charts)
    yield f'<div class="charts">{figures}</div>'
    yield (
        '<p class="soft"><span class="key" style="background:var(--bar)"></span> as annotated '
        '&nbsp; <span class="key" style="background:var(--after)"></span> after augmentation '
        f"({plural(report.draws, 'draw')} of each image); shares of all boxes.</p>"
    )
    smallest, cell = report.levels[0].sizes[0], side / max(report.levels[0].map)
    rows = [
        [
            "class",
            "images",
            "boxes",
            "5 %",
            "median",
            "95 %",
            f"below {smallest} px",
            f"below {cell:.0f} px",
        ]
    ]
    rows += [
        [
            _e(c.name),
            f"{c.images:,}",
            f"{c.boxes + c.ignored:,}",
            *map(whole, (c.size_low, c.size_median, c.size_high)),
            percent(c.below_smallest),
            percent(c.tiny),
        ]
        for c in report.classes
    ]
    yield "<h3>Sizes by class, px</h3>" + _table(rows)
    yield (
        f'<p class="soft">{smallest} px is the smallest anchor, {cell:.0f} px one cell of the '
        "finest feature map.</p>"
    )


def _size_ticks(side: int) -> list[tuple[float, str]]:
    powers = [side * 2.0**k for k in range(-6, 1)]
    return [(v, f"{v:.0f}\n{percent(v / side)}") for v in powers]


def _size_marks(report: Report) -> list[tuple[float, str]]:
    return [(float(level.sizes[0]), str(level.sizes[0])) for level in report.levels]


def _ratios(report: Report) -> list[float]:
    ratios = {float(r) for level in report.levels for r in level.ratios}
    return sorted({1.0, *ratios, *(1 / r for r in ratios)})


def _count_ticks(report: Report) -> list[tuple[float, str]]:
    """The middle of a bin with its name, for some five bins, the last among them."""
    edges = report.count_histogram.edges
    names = count_labels(report.count_histogram, report.most_boxes)
    step = max(1, len(names) // 5)
    return [((edges[i] + edges[i + 1]) / 2, names[i]) for i in range(len(names) - 1, -1, -step)]


def _histogram(
    histogram: Histogram, title: str, ticks: list, marks: list = (), *, log: bool = False
) -> str:
    after = None if histogram.after is None else shares(histogram.after)
    bars = shares(histogram.counts)
    return bars_svg(histogram.edges, bars, after, title, ticks, marks, log=log)


def _images(report: Report) -> Iterator[str]:
    sizes = report.sizes
    if sizes.kinds:
        extent = f"{sizes.smallest[1]}×{sizes.smallest[0]}"
        if sizes.kinds > 1:
            extent += f" to {sizes.largest[1]}×{sizes.largest[0]}, {sizes.kinds:,} sizes"
        yield (
            f"<p>{extent} (width × height). {percent(sizes.reduced)} of "
            "the images are larger than the canvas and are reduced to it; "
            f"turned by EXIF: {sizes.turned}.</p>"
        )
        most = sizes.common[0][2]
        rows = [["width × height", "images", ""]]
        rows += [
            [f"{w}×{h}", f"{n:,}", f'<td class="meter"><i style="--share:{n / most:.4f}"></i></td>']
            for h, w, n in sizes.common
        ]
        yield _table(rows)
    yield _named("Images without boxes", report.without_boxes)
    yield _named("Images with difficult or crowd boxes only", report.ignored_only)
    yield _named(
        f"Images with more than config.data.max_boxes = {report.max_boxes} boxes",
        report.too_many_boxes,
    )
    yield _named("Images that cannot be decoded", report.undecodable)
    if report.decoded < report.images:
        yield (
            f'<p class="soft">{report.decoded:,} images, drawn at random, were decoded, compared '
            "and fitted to the anchors; --images=N takes more.</p>"
        )


def _defects(report: Report) -> Iterator[str]:
    if not report.defects:
        yield "<p>No degenerate, out-of-range or repeated box among the stored ones.</p>"
    for kind, named in report.defects.items():
        yield _named(f"Box: {kind}", named)
    if report.prepared:
        yield "<h3>Found when the data set was prepared</h3>"
        for kind, named in report.prepared.items():
            yield _named(kind, named)


def _duplicates(report: Report, gallery: Gallery) -> Iterator[str]:
    yield f"<h3>The same bytes: {len(report.groups):,}</h3>"
    if report.groups:
        yield _pairs(gallery.groups, [g.across_splits for g in report.groups])
    yield f"<h3>Nearly the same: {plural(len(report.near), 'pair')}</h3>"
    yield (
        f'<p class="soft">64-bit difference hashes that differ in at most {HASH_BITS} bits, and '
        f"16×16 thumbnails in at most {COLOUR_LEVELS:g} levels of 255 on average: finds what was "
        "re-encoded, resized or taken a moment later, not what was turned, mirrored or "
        "cropped.</p>"
    )
    if report.near:
        yield _pairs(gallery.near, [p.across_splits for p in report.near])


def _pairs(pairs: list[list[Picture | None]], across: list[bool]) -> str:
    parts = []
    for pair, crosses in zip(pairs, across, strict=False):
        pictures = "".join(_figure(picture) for picture in pair if picture)
        label = "<b>across splits</b>" if crosses else "within a split"
        parts.append(f'<div><p class="soft">{label}</p><div class="pair">{pictures}</div></div>')
    more = len(across) - len(pairs)
    rest = f'<p class="soft">… and {more:,} more</p>' if more > 0 else ""
    return f'<div class="pairs">{"".join(parts)}</div>{rest}'


def _crowded(report: Report, gallery: Gallery) -> Iterator[str]:
    ignored = any(c.ignored for c in report.classes)
    yield _chips(report, {"difficult or crowd": IGNORED} if ignored else {})
    yield _gallery(gallery.crowded, "large")


def _anchors(report: Report) -> Iterator[str]:
    before, after = report.before, report.after
    yield (
        f"<p>Share of the boxes whose best IoU with an anchor reaches {report.threshold:g}, for "
        "each level alone and over all. “Best there” is the share whose best anchor lies on that "
        f"level. After augmentation: {plural(report.draws, 'draw')} of each image.</p>"
    )
    rows = [
        [
            "level",
            "map",
            "sizes, px",
            "anchors",
            "reached",
            "best there",
            "augmented: reached",
            "best there",
        ]
    ]
    for n, level in enumerate(report.levels):
        rows.append(
            [
                str(n + 1),
                f"{level.map[0]}×{level.map[1]}",
                f"{level.sizes[0]}–{level.sizes[1]}",
                f"{level.anchors:,}",
                _share(before.reached_by_level[n]),
                percent(before.home[n]),
                _share(after.reached_by_level[n]),
                percent(after.home[n]),
            ]
        )
    rows.append(
        [
            "<strong>all</strong>",
            "",
            "",
            f"{sum(v.anchors for v in report.levels):,}",
            _share(before.reached),
            "",
            _share(after.reached),
            "",
        ]
    )
    for title, field in (("only by forced match", "forced"), ("by no anchor", "untrained")):
        cells = [percent(getattr(fit, field)) for fit in (before, after)]
        rows.append([title, "", "", "", cells[0], "", cells[1], ""])
    cells = [decimal(fit.anchors_per_box) for fit in (before, after)]
    rows.append(["anchors per box", "", "", "", cells[0], "", cells[1], ""])
    yield _table(rows)
    reach, side = report.reached_by_size, report.image_size
    chart = bars_svg(
        reach.edges,
        reach.before,
        reach.after,
        "share of boxes that reach an anchor, by size",
        _size_ticks(side),
        _size_marks(report),
        log=True,
    )
    yield (
        f'<h3>By size</h3><figure class="chart">{chart}<figcaption>Of the boxes of each size, the '
        "share that reaches an anchor: bars as annotated, line after augmentation. Dashed: the "
        "anchors’ sizes.</figcaption></figure>"
    )
    levels = [f"level {n + 1}" for n in range(len(report.levels))]
    rows = [["class", "all levels", *levels, "augmented: all levels"]]
    for n, name in enumerate(report.class_names):
        row = [before.reached_by_class[n], *before.reached_by_class_and_level[n]]
        rows.append([_e(name), *map(_share, [*row, after.reached_by_class[n]])])
    yield "<h3>By class</h3>" + _table(rows)
    if report.what_if:
        rows = [["first level at", "min_percent", "reached", "augmented"]]
        rows += [
            [
                f"{w.min_percent[0]:g} %",
                ", ".join(f"{p:g}" for p in w.min_percent),
                _share(w.reached),
                _share(w.reached_augmented),
            ]
            for w in report.what_if
        ]
        yield "<h3>If the anchors began at another size</h3>" + _table(rows)
        yield (
            '<p class="soft">Laid out by SSD’s rule: the other levels rise evenly from twice the '
            "first size to the recipe’s largest.</p>"
        )


def _unreached(report: Report, gallery: Gallery) -> Iterator[str]:
    if not report.unreached:
        yield f"<p>Every box reaches IoU {report.threshold:g} with some anchor.</p>"
        return
    yield f"<p>{plural(report.unreached_count, 'box')}, before augmentation; the worst:</p>"
    rows = [
        ["image", "class", "width × height, px", "width / height", "best IoU", "anchors trained"]
    ]
    rows += [
        [
            f'<td class="text">{_e(b.file)}</td>',
            _e(b.class_name),
            f"{b.width:.1f}×{b.height:.1f}",
            f"{b.width / max(b.height, 1e-9):.2f}",
            f"{b.best_iou:.2f}",
            str(b.anchors),
        ]
        for b in report.unreached
    ]
    yield _table(rows)
    yield _gallery(gallery.unreached)


def _samples(report: Report, gallery: Gallery) -> Iterator[str]:
    yield (
        "<p>The first images of training with this recipe, seed and data, augmented and at "
        f"{report.image_size}×{report.image_size} px, before the mean is subtracted.</p>"
    )
    yield _chips(report)
    yield _gallery(gallery.samples)


def _chips(report: Report, others: dict[str, tuple[int, int, int]] | None = None) -> str:
    """The colours of the classes, and of what else is drawn."""
    colours = {name: class_color(n) for n, name in enumerate(report.class_names, start=1)}
    chips = "".join(
        f'<span><i style="background:rgb{colour}"></i>{_e(name)}</span>'
        for name, colour in (colours | (others or {})).items()
    )
    return f'<div class="chips">{chips}</div>'


def _gallery(pictures: list[Picture], style: str = "") -> str:
    return f'<div class="gallery {style}">{"".join(map(_figure, pictures))}</div>'


def _figure(picture: Picture) -> str:
    height, width = picture.size
    text = _e(picture.caption)
    return (
        f'<figure><img src="{picture.uri}" width="{width}" height="{height}" alt="{text}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _named(title: str, named: Named) -> str:
    items = "".join(f"<li>{_e(name)}</li>" for name in named.examples)
    if named.count > len(named.examples):
        items += f"<li>… and {named.count - len(named.examples):,} more</li>"
    listing = f'<ul class="files">{items}</ul>' if items else ""
    return f"<p>{_e(title)}: <strong>{named.count:,}</strong></p>{listing}"


def _share(share: float) -> str:
    """A table cell tinted by its share."""
    value = share if share == share else 0.0
    return f'<td class="share" style="--share:{value:.3f}">{percent(share)}</td>'


def _table(rows: list[list[str]]) -> str:
    """The first row is the head; a cell that is a <td> already is taken as it is."""
    head = "".join(f"<th>{cell}</th>" for cell in rows[0])
    body = "".join(
        "<tr>" + "".join(c if c.startswith("<td") else f"<td>{c}</td>" for c in row) + "</tr>"
        for row in rows[1:]
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )
