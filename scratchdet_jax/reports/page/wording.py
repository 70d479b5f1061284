"""Numbers and counts in words, and the findings."""

import math
from typing import NamedTuple

from scratchdet_jax.errors import plural as plural

SEVERITIES = ("problem", "warning", "note")
"""Training fails or its results are wrong; results are worse than possible; good to know."""


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


def percent(share: float) -> str:
    """A share as text: "31 %", "0.4 %", ">99.9 %", "–" for NaN."""
    if math.isnan(share):
        return "–"
    value = 100 * share
    if 0 < value < 0.1:
        return "<0.1 %"
    if 99.9 < value < 100:
        return ">99.9 %"
    return f"{value:.1f} %" if 0 < value < 9.95 or 99 < value < 100 else f"{value:.0f} %"


def number(value: float, decimals: int = 0) -> str:
    """A number with fixed decimals, "–" for NaN."""
    return "–" if math.isnan(value) else f"{value:.{decimals}f}"


def verb(count: int, singular: str) -> str:
    """The form of "is", "has", "looks" or "reaches" that goes with a count."""
    many = {"is": "are", "has": "have", "looks": "look", "reaches": "reach"}
    return singular if count == 1 else many[singular]


def first_few(names: list[str], most: int) -> str:
    """Names joined by commas, cut with an ellipsis."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
