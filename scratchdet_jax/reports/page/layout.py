"""Tables and lists, as lines of text and as HTML.

A table is rows of cells, the first row its head. A cell is a string or one of the kinds below.
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from scratchdet_jax.reports.page.style import CSS
from scratchdet_jax.reports.page.wording import number, percent

_KEPT = 10  # names of a kind in the report
_SHOWN = 5  # of them in the text


class Share(float):
    """A share in percent, tinted on the page."""


class Meter(float):
    """A share as a bar; for the page only."""


class Score(float):
    """A figure in [0, 1] with three decimals, tinted on the page; "–" for NaN."""


class Bold(str):
    """A name set in bold on the page."""


class Wrapped(str):
    """A long text that may wrap on the page."""


Cell = str | Share | Meter | Score


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
    texts = [[_text_cell(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = []
    for first, *rest in texts:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def html_table(rows: Sequence[Sequence[Cell]]) -> str:
    """A <table> that scrolls sideways on narrow pages."""
    head = "".join(map(_html_head, rows[0]))
    body = "".join(f"<tr>{''.join(map(_html_cell, row))}</tr>" for row in rows[1:])
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def facts(items: Mapping[str, str]) -> str:
    """Figures in large type with their names."""
    pairs = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in items.items()
    )
    return f'<dl class="facts">{pairs}</dl>'


def details(summary: str, content: str) -> str:
    """Content, which is HTML, that the reader opens; the browser needs no script for it."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def document(
    title: str,
    header: str,
    parts: Mapping[str, tuple[str, Sequence[str]]],
    footer: str,
    generator: str = "",
) -> str:
    """A self-contained page: inline style, charts and pictures.

    Args:
        title: of the window.
        header: HTML above the links to the sections.
        parts: title and elements (HTML) of each section, by its id.
        footer: HTML below the sections.
        generator: what wrote the page, for `output.check_output`.
    """
    links = "".join(f'<a href="#{name}">{title}</a>' for name, (title, _) in parts.items())
    body = "".join(
        f'<section id="{name}"><h2>{title}</h2>{"".join(elements)}</section>'
        for name, (title, elements) in parts.items()
    )
    mark = f'<meta name="generator" content="{html.escape(generator)}">' if generator else ""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{mark}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{CSS}</style>"
        f"</head><body><main><header>{header}<nav>{links}</nav></header>{body}"
        f"{footer}</main></body></html>\n"
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


def _text_cell(cell: Cell) -> str:
    match cell:
        case Share():
            return percent(cell)
        case Score():
            return number(cell, 3)
    return str(cell)


def _html_head(cell: Cell) -> str:
    style = ' class="text"' if isinstance(cell, Wrapped) else ""
    return f"<th{style}>{html.escape(str(cell))}</th>"


def _html_cell(cell: Cell) -> str:
    match cell:
        case Share():
            tint = cell if cell == cell else 0.0
            return f'<td class="share" style="--share:{tint:.3f}">{html.escape(percent(cell))}</td>'
        case Score():
            tint = cell if cell == cell else 0.0
            return f'<td class="share" style="--share:{tint:.3f}">{number(cell, 3)}</td>'
        case Meter():
            return f'<td class="meter"><i style="--share:{cell:.4f}"></i></td>'
        case Bold():
            return f"<td><strong>{html.escape(cell)}</strong></td>"
        case Wrapped():
            return f'<td class="text">{html.escape(cell)}</td>'
    return f"<td>{html.escape(cell)}</td>"
