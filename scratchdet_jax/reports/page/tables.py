"""Findings, numbers in words, and tables: rows of cells, the first row the head."""

import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scratchdet_jax.errors import plural

SEVERITIES = ("problem", "warning", "note")
"""Training fails or its results are wrong; results are worse than possible; good to know."""

_KEPT = 10  # names of a kind
_PLURALS = {"is": "are", "has": "have"}
_WIDTH = 1000  # of lines that no terminal shows: no table is wrapped in a log


class Finding(NamedTuple):
    """One finding.

    Attributes:
        severity: one of SEVERITIES.
        weight: roughly the share of images, boxes or classes affected; ranks within a severity.
        text: what was found, a sentence.
        advice: what to do; may be empty.
    """

    severity: str
    weight: float
    text: str
    advice: str = ""


def named(names: Sequence[str]) -> dict[str, Any]:
    """Returns how many there are as `count`, and the first few as `examples`."""
    return {"count": len(names), "examples": list(names[:_KEPT])}


def percent(share: float | None) -> str:
    """Returns a share as text: "31 %", "0.4 %", ">99.9 %", "–" for NaN and None."""
    if share is None or math.isnan(share):
        return "–"
    value = 100 * share
    if 0 < value < 0.1:
        return "<0.1 %"
    if 99.9 < value < 100:
        return ">99.9 %"
    return f"{value:.1f} %" if 0 < value < 9.95 or 99 < value < 100 else f"{value:.0f} %"


def number(value: float | None, decimals: int = 0) -> str:
    """Returns a number with fixed decimals, "–" for NaN and None."""
    return "–" if value is None or math.isnan(value) else f"{value:.{decimals}f}"


def several(count: int, noun: str, verb: str) -> str:
    """Returns a count, its noun and its verb: "1 box is", "2 boxes are"."""
    return f"{plural(count, noun)} {verb if count == 1 else _PLURALS[verb]}"


def first_few(names: Sequence[str], most: int) -> str:
    """Returns names joined by commas, cut with an ellipsis."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def for_json(value: Any) -> Any:
    """Returns a figure of any depth as JSON has it: NamedTuples as objects, NaN as null."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {str(key): for_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [for_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


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
