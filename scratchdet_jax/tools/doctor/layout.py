"""Tables and lists, as lines of text and as HTML.

A table is rows of cells, the first row its head. A cell is a string or one of the kinds below.
"""

import html
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from scratchdet_jax.tools.doctor.wording import percent

_KEPT = 10  # names of a kind in the report
_SHOWN = 5  # of them in the text


class Share(float):
    """A share in percent, tinted on the page."""


class Meter(float):
    """A share as a bar; for the page only."""


class Bold(str):
    """A name set in bold on the page."""


class Wrapped(str):
    """A long text that may wrap on the page."""


Cell = str | Share | Meter


class Named(NamedTuple):
    """How many there are, and the first few by name."""

    count: int
    examples: list[str]

    @classmethod
    def first(cls, names: Sequence[str]) -> "Named":
        """Counts all names and keeps the first."""
        return cls(len(names), list(names[:_KEPT]))

    def to_text(self, title: str) -> Iterator[str]:
        """Title and count, then the first names."""
        yield f"  {title}: {self.count}"
        yield from (f"    {name}" for name in self.examples[:_SHOWN])
        if self.count > _SHOWN:
            yield f"    … and {self.count - _SHOWN:,} more"

    def to_html(self, title: str) -> str:
        """Title and count, then all names."""
        items = "".join(f"<li>{html.escape(name)}</li>" for name in self.examples)
        if self.count > len(self.examples):
            items += f"<li>… and {self.count - len(self.examples):,} more</li>"
        listing = f'<ul class="files">{items}</ul>' if items else ""
        return f"<p>{html.escape(title)}: <strong>{self.count:,}</strong></p>{listing}"


def text_table(rows: Sequence[Sequence[Cell]]) -> list[str]:
    """Aligned lines: the first column to the left, the others to the right."""
    texts = [[percent(c) if isinstance(c, Share) else str(c) for c in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = []
    for first, *rest in texts:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def html_table(rows: Sequence[Sequence[Cell]]) -> str:
    """A <table> that scrolls sideways on narrow pages."""
    head = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in rows[0])
    body = "".join(f"<tr>{''.join(map(_html_cell, row))}</tr>" for row in rows[1:])
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def soft(text: str) -> str:
    """A paragraph in grey; `text` is HTML."""
    return f'<p class="soft">{text}</p>'


def figure(content: str, caption: str, style: str = "") -> str:
    """A chart or picture with its caption."""
    css = f' class="{style}"' if style else ""
    return f"<figure{css}>{content}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _html_cell(cell: Cell) -> str:
    match cell:
        case Share():
            tint = cell if cell == cell else 0.0
            return f'<td class="share" style="--share:{tint:.3f}">{html.escape(percent(cell))}</td>'
        case Meter():
            return f'<td class="meter"><i style="--share:{cell:.4f}"></i></td>'
        case Bold():
            return f"<td><strong>{html.escape(cell)}</strong></td>"
        case Wrapped():
            return f'<td class="text">{html.escape(cell)}</td>'
    return f"<td>{html.escape(cell)}</td>"
