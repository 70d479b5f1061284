"""Tables: rows of cells, the first row the head; drawn on the page and in the terminal.

A cell is a string or one of the kinds below, whose `kind` the page's templates ask for.
"""

import io
import math
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scratchdet_jax.reports.page.wording import number, percent

_WIDTH = 1000  # of lines that no terminal shows: no table is wrapped in a log


class Share(float):
    """A share in percent, tinted on the page; "–" for NaN."""

    kind = "share"

    def __str__(self) -> str:
        return percent(self)


class Score(float):
    """A figure in [0, 1] with three decimals, tinted on the page; "–" for NaN and None."""

    kind = "share"

    def __new__(cls, figure: float | None) -> "Score":
        """Takes None for NaN."""
        return super().__new__(cls, math.nan if figure is None else figure)

    def __str__(self) -> str:
        return number(self, 3)


class Meter(float):
    """A share as a bar; for the page only."""

    kind = "meter"


class Bold(str):
    """A name set in bold."""

    kind = "bold"


class Wrapped(str):
    """A long text that may wrap on the page."""

    kind = "text"


Cell = str | Share | Score | Meter


def text_table(rows: Sequence[Sequence[Cell]]) -> str:
    """Returns lines for the terminal: the first column to the left, the others to the right.

    Columns of meters are left out. Colours and wrapping are those of the terminal, if there is one.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    columns = [column for column in zip(*rows, strict=True) if not _is_meter(column)]
    for n, column in enumerate(columns):
        table.add_column(Text(str(column[0])), justify="right" if n else "left", overflow="fold")
    for row in zip(*(column[1:] for column in columns), strict=True):
        table.add_row(*(Text(str(cell), "bold" if isinstance(cell, Bold) else "") for cell in row))
    shown = sys.stdout.isatty()
    written = io.StringIO()
    console = Console(
        file=written, force_terminal=shown, width=None if shown else _WIDTH, highlight=False
    )
    console.print(table)
    lines = written.getvalue().splitlines()
    return "\n".join(f"  {line}".rstrip() for line in lines)


def _is_meter(column: Sequence[Cell]) -> bool:
    return any(isinstance(cell, Meter) for cell in column)
