"""The report as text for the terminal."""

import itertools
import textwrap
from collections.abc import Iterator, Sequence

from scratchdet_jax.tools.doctor.duplicates import COLOUR_LEVELS, HASH_BITS, Overlap
from scratchdet_jax.tools.doctor.findings import decimal, percent, plural, whole
from scratchdet_jax.tools.doctor.report import Histogram, Named, Report

_WIDTH = 100
_SHOWN = 5  # examples of a kind


def to_text(report: Report) -> str:
    """The whole report, section by section, the findings last."""
    sections = (_head, _counts, _sizes, _images, _defects, _duplicates, _anchors, _findings)
    return "\n\n".join("\n".join(section(report)) for section in sections)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as aligned lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def overlap_sentence(overlap: Overlap) -> str:
    """What two splits share, as a sentence."""
    shared = plural(overlap.shared, "image")
    if overlap.contained == "both":
        return f"{overlap.first} and {overlap.second} hold the same {shared}."
    if overlap.contained:
        inner, outer = overlap.first, overlap.second
        if overlap.contained == "second":
            inner, outer = outer, inner
        why = " (it is made up of other splits)" if overlap.by_design else ""
        return f"{outer} contains all {shared} of {inner}{why}."
    return f"{overlap.first} and {overlap.second} share {shared}."


def _head(report: Report) -> Iterator[str]:
    yield (
        f"{report.dataset}: {plural(report.images, 'image')}, "
        f"{plural(len(report.class_names), 'class')}; recipe {report.recipe}, "
        f"{report.image_size} px, canvas {report.canvas[0]}×{report.canvas[1]}"
    )


def _counts(report: Report) -> Iterator[str]:
    yield "IMAGES AND BOXES BY SPLIT (in brackets: difficult or crowd, besides)"
    ignored = any(sum(split.ignored) for split in report.splits)
    head = ["", *(split.name for split in report.splits)]
    rows = [head, ["images", *(f"{split.images:,}" for split in report.splits)]]
    rows.append(["  without boxes", *(f"{split.without_boxes:,}" for split in report.splits)])
    if ignored:
        rows.append(["  only ignored", *(f"{split.ignored_only:,}" for split in report.splits)])
    for n, name in enumerate(["boxes", *report.class_names]):
        row = [name if n == 0 else f"  {name}"]
        for split in report.splits:
            boxes = sum(split.boxes) if n == 0 else split.boxes[n - 1]
            other = sum(split.ignored) if n == 0 else split.ignored[n - 1]
            row.append(f"{boxes:,}" + (f" ({other:,})" if ignored else ""))
        rows.append(row)
    yield from table(rows)
    for overlap in report.overlaps:
        yield f"  {overlap_sentence(overlap)}"


def _sizes(report: Report) -> Iterator[str]:
    yield f"BOX SIZES (sqrt of area, pixels of the {report.image_size} px network input)"
    smallest = report.levels[0].sizes[0]
    cell = report.image_size / max(report.levels[0].map)
    rows = [["", "images", "boxes", "5 %", "median", "95 %", f"<{smallest} px", f"<{cell:.0f} px"]]
    rows += [
        [
            c.name,
            f"{c.images:,}",
            f"{c.boxes + c.ignored:,}",
            *map(whole, (c.size_low, c.size_median, c.size_high)),
            percent(c.below_smallest),
            percent(c.tiny),
        ]
        for c in report.classes
    ]
    yield from table(rows)
    yield f"  (<{smallest} px: below the smallest anchor; <{cell:.0f} px: below one cell of it)"
    sizes, aspects = report.size_histogram, report.aspect_histogram
    yield from _bars("size, px", *_by_twos(sizes, "{:.0f}"))
    yield from _bars("width / height", *_by_twos(aspects, "{:.2f}"))
    labels = count_labels(report.count_histogram, report.most_boxes)
    yield from _bars("boxes per image", labels, report.count_histogram.counts)


def count_labels(histogram: Histogram, most: int) -> list[str]:
    """Names of the bins of a histogram of whole numbers, the last open where it holds more."""
    starts = [round(edge) for edge in histogram.edges]
    labels = [
        str(low) if high == low + 1 else f"{low}–{high - 1}"
        for low, high in itertools.pairwise(starts)
    ]
    return labels if most < starts[-1] else [*labels[:-1], f"{starts[-2]}+"]


def _by_twos(histogram: Histogram, style: str) -> tuple[list[str], list[int]]:
    """Labels and counts with every two bins joined."""
    counts = [sum(histogram.counts[i : i + 2]) for i in range(0, len(histogram.counts), 2)]
    edges = [*histogram.edges[:-1:2], histogram.edges[-1]]
    labels = [f"{style.format(a)}–{style.format(b)}" for a, b in itertools.pairwise(edges)]
    return labels, counts


def _bars(title: str, labels: list[str], counts: list[int]) -> Iterator[str]:
    """A histogram as lines of bars, from the first to the last bin that holds something."""
    yield f"  {title}"
    total, most = sum(counts) or 1, max(counts, default=0) or 1
    filled = [i for i, count in enumerate(counts) if count]
    for i in range(filled[0], filled[-1] + 1) if filled else ():
        bar = "█" * round(40 * counts[i] / most) or ("▏" if counts[i] else "")
        yield f"  {labels[i]:>12}  {percent(counts[i] / total):>6}  {bar}".rstrip()


def _images(report: Report) -> Iterator[str]:
    sizes = report.sizes
    yield "IMAGES"
    if sizes.kinds:
        common = ", ".join(f"{w}×{h} ({n:,})" for h, w, n in sizes.common[:6])
        yield f"  {plural(sizes.kinds, 'size')}; commonest (width×height): {common}"
        yield (
            f"  smallest {sizes.smallest[1]}×{sizes.smallest[0]}, largest "
            f"{sizes.largest[1]}×{sizes.largest[0]}; {percent(sizes.reduced)} are reduced to the "
            f"canvas; {sizes.turned} turned by EXIF"
        )
    yield from _named("without boxes", report.without_boxes)
    yield from _named("with difficult or crowd boxes only", report.ignored_only)
    yield from _named("that cannot be decoded", report.undecodable)
    yield from _named(f"with more than {report.max_boxes} boxes", report.too_many_boxes)
    if report.crowded:
        crowded = ", ".join(f"{name} ({n})" for _, name, n in report.crowded[:3])
        yield f"  most crowded: {crowded}"
    if report.decoded < report.images:
        yield (
            f"  (decoded, compared and fitted: {report.decoded:,} images, drawn at random; "
            "--images=N for more)"
        )


def _named(what: str, named: Named) -> Iterator[str]:
    yield f"  {what}: {named.count}"
    yield from (f"    {name}" for name in named.examples[:_SHOWN])
    if named.count > _SHOWN:
        yield f"    … and {named.count - _SHOWN:,} more"


def _defects(report: Report) -> Iterator[str]:
    yield "BOXES AS STORED"
    if not report.defects:
        yield "  no degenerate, out-of-range or repeated box"
    for kind, named in report.defects.items():
        yield from _named(kind, named)
    if report.prepared:
        yield "  found when the data set was prepared:"
        for kind, named in report.prepared.items():
            yield from _named(f"  {kind}", named)


def _duplicates(report: Report) -> Iterator[str]:
    yield "DUPLICATES"
    rows = [f"{' = '.join(g.names)}" for g in report.groups]
    yield from _named("of the same bytes", Named(len(rows), rows))
    rows = [f"{' ~ '.join(p.names)} ({p.bits} bits)" for p in report.near]
    yield from _named(
        f"nearly the same (dHash within {HASH_BITS} of 64 bits, thumbnails within "
        f"{COLOUR_LEVELS:g} levels of 255)",
        Named(len(rows), rows),
    )


def _anchors(report: Report) -> Iterator[str]:
    yield f"ANCHORS: share of boxes whose best IoU reaches {report.threshold:g}"
    before, after = report.before, report.after
    rows = [["level", "map", "sizes, px", "reached", "best there", "augmented", "best there"]]
    for n, level in enumerate(report.levels):
        rows.append(
            [
                str(n + 1),
                f"{level.map[0]}×{level.map[1]}",
                f"{level.sizes[0]}–{level.sizes[1]}",
                percent(before.reached_by_level[n]),
                percent(before.home[n]),
                percent(after.reached_by_level[n]),
                percent(after.home[n]),
            ]
        )
    rows.append(["all", "", "", percent(before.reached), "", percent(after.reached), ""])
    for title, field in (("only by forced match", "forced"), ("by no anchor", "untrained")):
        cells = [percent(getattr(fit, field)) for fit in (before, after)]
        rows.append([title, "", "", cells[0], "", cells[1], ""])
    cells = [decimal(fit.anchors_per_box) for fit in (before, after)]
    rows.append(["anchors per box", "", "", cells[0], "", cells[1], ""])
    yield from table(rows)
    yield f"  (augmented: {before.count:,} boxes, {plural(report.draws, 'draw')} of each image)"
    rows = [["by class", "all levels", *(str(n + 1) for n in range(len(report.levels))), "augm."]]
    for n, name in enumerate(report.class_names):
        row = [before.reached_by_class[n], *before.reached_by_class_and_level[n]]
        rows.append([name, *map(percent, row), percent(after.reached_by_class[n])])
    yield from table(rows)
    if report.unreached:
        yield f"  reached by no anchor: {report.unreached_count:,} boxes; the worst:"
        for b in report.unreached[:_SHOWN]:
            yield (
                f"    {b.file}: {b.class_name} {b.width:.0f}×{b.height:.0f} px, width/height "
                f"{b.width / max(b.height, 1e-9):.2f}, best IoU {b.best_iou:.2f}"
            )
    if report.what_if:
        yield "  if the anchors began at another size (SSD's rule), they would reach:"
        rows = [["first level at", *(f"{w.min_percent[0]:g} %" for w in report.what_if)]]
        rows.append(["  as annotated", *(percent(w.reached) for w in report.what_if)])
        rows.append(["  augmented", *(percent(w.reached_augmented) for w in report.what_if)])
        yield from table(rows)


def _findings(report: Report) -> Iterator[str]:
    yield "FINDINGS"
    if not report.findings:
        yield "  nothing to mend"
    for n, finding in enumerate(report.findings, start=1):
        text = f"{finding.text} {finding.advice}".strip()
        lead = f"  {n:>2}. {finding.severity.upper()}: "
        yield from textwrap.wrap(
            text,
            _WIDTH,
            initial_indent=lead,
            subsequent_indent="      ",
            break_on_hyphens=False,
            break_long_words=False,
        )
    yield ""
    yield f"examined in {report.seconds:.0f} s"
