"""Bar charts as inline SVG; they scale with the page and use its colours."""

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
