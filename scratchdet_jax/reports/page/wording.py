"""Numbers and counts in words, lists of names, and the findings."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from scratchdet_jax.errors import plural

SEVERITIES = ("problem", "warning", "note")
"""Training fails or its results are wrong; results are worse than possible; good to know."""

_KEPT = 10  # names of a kind
_PLURALS = {"is": "are", "has": "have"}


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
