"""Tables: rows of cells, the first row the head; drawn on the page and in the terminal."""

import math
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scratchdet_jax.reports.page.wording import number, percent

_WIDTH = 1000  # of lines that no terminal shows: no table is wrapped in a log


class Cell(str):
    """A text with what the page makes of it.

    Attributes:
        kind: "share" is tinted, "slip" in the colour of problems; "meter" is a bar (for the page
            only), "bold" is set in bold, and "text" may wrap.
        share: of the tint or the bar, from 0 to 1; 0 for NaN.
    """

    kind: str
    share: float

    def __new__(cls, text: str, kind: str, share: float = 0.0) -> "Cell":
        """Makes a cell."""
        cell = super().__new__(cls, text)
        cell.kind, cell.share = kind, 0.0 if math.isnan(share) else share
        return cell


Rows = Sequence[Sequence[str]]


def share(value: float) -> Cell:
    """Returns a tinted share in percent; "–" for NaN."""
    return Cell(percent(value), "share", value)


def score(value: float | None) -> Cell:
    """Returns a tinted figure in [0, 1] with three decimals; "–" for NaN and None."""
    return Cell(number(value, 3), "share", 0.0 if value is None else value)


def meter(value: float) -> Cell:
    """Returns a share as a bar."""
    return Cell("", "meter", value)


def transposed(columns: Rows) -> list[list[str]]:
    """Returns rows of columns."""
    return [list(row) for row in zip(*columns, strict=True)]


def text_table(rows: Rows) -> str:
    """Returns lines for the terminal: the first column to the left, the others to the right.

    Columns of meters are left out. Colours and wrapping are those of the terminal, if there is one.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    columns = [c for c in transposed(rows) if "meter" not in map(_kind, c)]
    for n, column in enumerate(columns):
        table.add_column(Text(column[0]), justify="right" if n else "left", overflow="fold")
    for row in transposed([column[1:] for column in columns]):
        styles = ["bold" if _kind(cell) == "bold" else "" for cell in row]
        table.add_row(*map(Text, row, styles))
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    with console.capture() as written:
        console.print(table)
    return "\n".join(f"  {line}".rstrip() for line in written.get().splitlines())


def _kind(cell: str) -> str:
    return cell.kind if isinstance(cell, Cell) else ""
