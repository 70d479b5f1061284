"""Bar and line charts as inline SVG; they scale with the page and use its colours."""

import html
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

_WIDTH, _HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 34, 40


class Axis(NamedTuple):
    """The horizontal axis of a chart.

    Attributes:
        ticks: value and text of the labels under the axis; a text may have several lines.
        marks: value and text of dashed vertical lines.
        log: whether the axis is logarithmic.
    """

    ticks: Sequence[tuple[float, str]]
    marks: Sequence[tuple[float, str]] = ()
    log: bool = False


def bars_svg(
    edges: Sequence[float],
    bars: Sequence[float],
    line: Sequence[float] | None,
    title: str,
    axis: Axis,
) -> str:
    """Bars, and a stepped line over them.

    Args:
        edges: [n + 1], rising.
        bars: [n], shares from 0 to 1; NaN is drawn as 0.
        line: [n], likewise, or None.
        title: the text alternative of the picture.
        axis: labels and marks of the edges' axis.

    Returns:
        An <svg> element.
    """
    bars = [0.0 if math.isnan(share) else share for share in bars]
    line = [0.0 if math.isnan(share) else share for share in line or ()]
    top = _ceiling(max([*bars, *line, 0.0]))
    across = _scale(edges[0], edges[-1], axis.log)
    bottom = _HEIGHT - _BOTTOM

    def up(share: float) -> float:
        return bottom - share / top * (bottom - _TOP)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">']
    for share in (0.0, top / 2, top):
        y = up(share)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" {_ys(y, y)}/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{100 * share:g} %", "end"))
    for low, high, share in zip(edges, edges[1:], bars, strict=False):
        x, width = across(low), max(across(high) - across(low) - 1, 1)
        height = bottom - up(share)
        if share:
            parts.append(
                f'<rect class="bar" x="{x:.1f}" y="{up(share):.1f}" width="{width:.1f}" '
                f'height="{height:.1f}"><title>{low:.3g}–{high:.3g}: {100 * share:.1f} %</title>'
                "</rect>"
            )
    if line:
        points = []
        for low, high, share in zip(edges, edges[1:], line, strict=False):
            points += [f"{across(low):.1f},{up(share):.1f}", f"{across(high):.1f},{up(share):.1f}"]
        parts.append(f'<polyline class="after" points="{" ".join(points)}"/>')
    for n, (value, text) in enumerate(axis.marks):
        if edges[0] <= value <= edges[-1]:
            x, y = across(value), 12 + 14 * (n % 2)
            parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" {_ys(y + 3, bottom)}/>')
            parts.append(_text(x, y, text, "middle", "marked"))
    for value, text in axis.ticks:
        x = across(value)
        anchor = "end" if x > _WIDTH - 30 else "middle"  # the last label would be cut off
        x = min(x, _WIDTH - 2)
        parts += [
            _text(x, bottom + 16 + 14 * row, piece, anchor)
            for row, piece in enumerate(text.split("\n"))
        ]
    return "".join([*parts, "</svg>"])


class Curve(NamedTuple):
    """A line of a chart.

    Attributes:
        x: [n].
        y: [n]; NaN is a gap.
        style: CSS classes of the line; `run_style` gives that of a run.
        name: shown when the pointer rests on the line.
        low: [n], the lower edge of a band around the line, with `high` the upper one; or None.
        high: see `low`.
        dots: mark the points, of which there are few.
    """

    x: Sequence[float]
    y: Sequence[float]
    style: str
    name: str = ""
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dots: bool = False


RUN_STYLES = 8


def run_style(number: int) -> str:
    """The CSS class of a run by its number from 0; the ninth looks like the first."""
    return f"s{number % RUN_STYLES}"


def lines_svg(
    curves: Sequence[Curve],
    title: str,
    *,
    across: tuple[float, float] | None = None,
    top: float | None = None,
    log: bool = False,
    size: tuple[int, int] = (_WIDTH, _HEIGHT),
) -> str:
    """Curves over common axes; the vertical one begins at 0 unless it is logarithmic.

    Args:
        curves: drawn in order, the last on top.
        title: the text alternative of the picture.
        across: ends of the horizontal axis; by default those of the curves.
        top: upper end of the vertical axis; by default a round number above the curves.
        log: the vertical axis is logarithmic; values that are not positive are gaps.
        size: width and height; the text has the same size in all charts.

    Returns:
        An <svg> element; it says "no data" if there is nothing to draw.
    """
    width, height = size
    left, right, bottom, above = 50, width - 12, height - 26, 12
    lowest = 0.0 if not log else 5e-324
    shown = [v for c in curves for v in (*c.y, *(c.high or ())) if math.isfinite(v) and v >= lowest]
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">'
    if not shown:
        return f"{head}{_text(width / 2, height / 2, 'no data', 'middle')}</svg>"
    xs = [value for curve in curves for value in curve.x]
    start, end = across or (min(xs), max(xs))
    if log:
        low, high = math.floor(math.log10(min(shown))), math.ceil(math.log10(max(shown)))
        high = max(high, low + 1)
        step = -(-(high - low) // 5)
        ticks = [10.0**power for power in range(low, high + 1, step)]
    else:
        ticks = _ticks(0.0, top or max(shown) or 1.0)
        if top is None:
            top = ticks[-1]

    def place(x: float) -> float:
        return left + (x - start) / ((end - start) or 1.0) * (right - left)

    def up(y: float) -> float:
        share = (math.log10(y) - low) / (high - low) if log else y / top
        return bottom - min(max(share, 0.0), 1.0) * (bottom - above)

    parts = [head]
    for value in ticks:
        if log or value <= top * 1.001:
            y = up(value)
            parts.append(f'<line class="grid" x1="{left}" x2="{right}" {_ys(y, y)}/>')
            parts.append(_text(left - 6, y + 4, f"{value:.6g}", "end"))
    for value in _ticks(start, end, 4):
        if start <= value <= end * 1.001:
            x = place(value)
            anchor = "end" if x > width - 24 else "middle"
            parts.append(_text(min(x, width - 1), bottom + 17, f"{value:,.6g}", anchor))
    for curve in curves:
        parts.append(f'<g class="{curve.style}">')
        if curve.name:
            parts.append(f"<title>{html.escape(curve.name)}</title>")
        if curve.low is not None and curve.high is not None:
            band = zip(curve.x, curve.low, curve.high, strict=True)
            edges = [(x, a, b) for x, a, b in band if min(a, b) >= lowest and math.isfinite(a + b)]
            outline = [(x, b) for x, _, b in edges] + [(x, a) for x, a, _ in reversed(edges)]
            parts.append(f'<polygon points="{_points(outline, place, up)}"/>')
        for piece in _pieces(curve, lowest):
            parts.append(f'<polyline points="{_points(piece, place, up)}"/>')
            if curve.dots or len(piece) == 1:
                parts += [f'<circle cx="{place(x):.1f}" cy="{up(y):.1f}" r="3"/>' for x, y in piece]
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def _pieces(curve: Curve, lowest: float) -> list[list[tuple[float, float]]]:
    """The points of a curve between its gaps."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(curve.x, curve.y, strict=True):
        if math.isfinite(y) and y >= lowest:
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _points(
    points: Sequence[tuple[float, float]],
    place: Callable[[float], float],
    up: Callable[[float], float],
) -> str:
    return " ".join(f"{place(x):.1f},{up(y):.1f}" for x, y in points)


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from below `low` to above `high`, about `count` steps of 1, 2 or 5 · 10^k."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * f for f in (1, 2, 5, 10) if power * f * count >= span * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(step * i, 12) for i in range(first, last + 1)]


def shares(counts: Sequence[int]) -> list[float]:
    """Counts divided by their sum; zeros if the sum is 0."""
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def _ceiling(share: float) -> float:
    """The next round share above: 1, 2, 4, 5 or 10 times a power of ten."""
    if share <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(share))
    return min(next(power * f for f in (1, 2, 4, 5, 10) if power * f >= share - 1e-12), 1.0)


def _scale(low: float, high: float, log: bool) -> Callable[[float], float]:
    transform = math.log if log else float
    start, end = transform(low), transform(high)
    span = (end - start) or 1.0

    def across(value: float) -> float:
        return _LEFT + (transform(value) - start) / span * (_WIDTH - _LEFT - _RIGHT)

    return across


def _ys(first: float, second: float) -> str:
    return f'y1="{first:.1f}" y2="{second:.1f}"'


def _text(x: float, y: float, text: str, anchor: str, style: str = "tick") -> str:
    return (
        f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{html.escape(text)}</text>"
    )
