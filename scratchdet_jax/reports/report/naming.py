"""The runs' names, colours and common classes."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence

from scratchdet_jax.reports.page.charts import run_style
from scratchdet_jax.reports.page.layout import soft


def legend(names: Iterable[str]) -> str:
    """The colours of the runs in the charts; nothing for one run."""
    names = list(names)
    if len(names) < 2:
        return ""
    spans = "".join(
        f'<span class="{run_style(n)}"><i></i><b>{html.escape(name)}</b></span>'
        for n, name in enumerate(names)
    )
    return f'<div class="legend">{spans}</div>'


def common_classes(class_names: Mapping[str, Sequence[str]]) -> list[str]:
    """The classes that all runs have, in the order of the first run.

    Args:
        class_names: of each run.
    """
    first, *others = class_names.values()
    return [name for name in first if all(name in names for names in others)]


def common_note(class_names: Mapping[str, Sequence[str]]) -> str:
    """A sentence if the runs have different classes; "" otherwise."""
    common = common_classes(class_names)
    if all(len(names) == len(common) for names in class_names.values()):
        return ""
    if not common:
        return soft("The runs have no class in common, so there is nothing to compare by class.")
    return soft(
        f"The runs have different classes: by class, only the {len(common)} that all of them have "
        "are compared."
    )


def value(figure: float | None) -> float:
    """A figure that may be undefined, as a number: NaN for None."""
    return math.nan if figure is None else figure
