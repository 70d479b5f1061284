"""Charts as inline SVG: drawn by matplotlib, in the colours and the font of the page."""

import io
import itertools
import re
from collections.abc import Sequence
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SIZE = (440, 250)
_FONT_SIZE = 13
_VARIABLES = ("soft", "line", "card", "bar", "after", "mark", *(f"s{n}" for n in range(8)))
_RUN_COLOURS = 8
_TOOLTIP = "tooltip: "
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def colour(variable: str) -> str:
    """Returns the colour that `to_svg` replaces by the CSS variable of that name."""
    return f"#fe{_VARIABLES.index(variable):02x}dc"


def run_colour(number: int) -> str:
    """Returns the colour of a run by its number from 0; the ninth looks like the first."""
    return colour(f"s{number % _RUN_COLOURS}")


def new_chart(size: tuple[int, int] = SIZE) -> tuple[Figure, Axes]:
    """Returns an empty chart of that width and height; the text has one size in all charts."""
    figure = Figure((size[0] / 72, size[1] / 72), layout="constrained")  # 72 points an inch
    axes = figure.subplots()
    for patch in (figure.patch, axes.patch, *axes.spines.values()):
        patch.set_visible(False)
    axes.grid(axis="y", color=colour("line"))
    axes.set_axisbelow(True)
    axes.margins(0)
    axes.tick_params(which="both", length=0, pad=6, labelcolor=colour("soft"), labelsize=_FONT_SIZE)
    axes.locator_params(nbins=5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,g}")
    return figure, axes


def set_tooltip(artist: Artist, text: str) -> None:
    """Makes the page show a text when the pointer rests on a part of a chart."""
    artist.set_gid(_TOOLTIP + text)


def to_svg(figure: Figure, title: str) -> Markup:
    """Returns a chart as an <svg> element; `title` is the text alternative of the picture."""
    written = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(written, format="svg", metadata=_NO_METADATA)
    root = ElementTree.fromstring(written.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]  # without the namespace
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        if element.tag == "g":
            name = attributes.pop("id", "")
            if name.startswith(_TOOLTIP):
                tooltip = ElementTree.Element("title")
                tooltip.text = name.removeprefix(_TOOLTIP)
                element.insert(0, tooltip)
        element.attrib = attributes
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": title}
    if (styles := root.find("defs")) is not None:
        root.remove(styles)  # matplotlib's style sheet, which would style the whole page
    svg = ElementTree.tostring(root, encoding="unicode")
    svg = re.sub(" font-family: [^;]*;", "", svg)  # the page has one
    return Markup(re.sub("#fe(..)dc", lambda m: f"var(--{_VARIABLES[int(m[1], 16)]})", svg))


def bar_chart(
    edges: Sequence[float],
    bars: Sequence[float],
    line: Sequence[float] | None,
    title: str,
    ticks: Sequence[tuple[float, str]],
    marks: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Draws bars, and a stepped line over them.

    Args:
        edges: [n + 1], rising.
        bars: [n], shares from 0 to 1; NaN is drawn as 0.
        line: [n], likewise, or None.
        title: the text alternative of the picture.
        ticks: value and text of the labels under the axis; a text may have several lines.
        marks: value and text of dashed vertical lines. With them, the axis is logarithmic.

    Returns:
        An <svg> element.
    """
    figure, axes = new_chart()
    if marks:
        axes.set_xscale("log")
    heights = np.nan_to_num(bars)
    drawn = axes.bar(
        edges[:-1],
        heights,
        np.diff(edges),
        align="edge",
        color=colour("bar"),
        edgecolor=colour("card"),
    )
    for bar, (low, high), height in zip(drawn, itertools.pairwise(edges), heights, strict=True):
        set_tooltip(bar, f"{low:.3g}–{high:.3g}: {100 * height:.1f} %")
    if line is not None:
        axes.stairs(np.nan_to_num(line), edges, color=colour("after"), linewidth=2, baseline=None)
    for n, (value, text) in enumerate(marks):
        if edges[0] <= value <= edges[-1]:
            axes.axvline(value, color=colour("mark"), linestyle="--", linewidth=1)
            axes.annotate(
                text,
                (value, 1),
                (0, 2 + 14 * (n % 2)),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="center",
                color=colour("mark"),
                fontsize=_FONT_SIZE,
            )
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xticks(*zip(*ticks, strict=True))
    axes.minorticks_off()
    axes.set_ylim(0, 1.04 * axes.dataLim.ymax or 1)
    axes.locator_params(axis="y", nbins=4)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    return to_svg(figure, title)
