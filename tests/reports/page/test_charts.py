import re

import pytest

from scratchdet_jax.reports.curves import draw_curve, set_scale
from scratchdet_jax.reports.page.charts import bar_chart, new_chart, run_colour, set_tooltip, to_svg

NAN = float("nan")


def paths(svg, colour):
    """The points of each path that is drawn in a colour."""
    found = re.findall(rf'<path d="([^"]*)"[^>]*(?:stroke|fill): var\(--{colour}\)', svg)
    return [
        [tuple(map(float, point)) for point in re.findall(r"[ML] (\S+) (\S+)", path)]
        for path in found
    ]


def drawn(curves, title="title"):
    figure, axes = new_chart()
    for n, (steps, values) in enumerate(curves):
        draw_curve(axes, steps, values, run_colour(n))
    set_scale(axes)
    return to_svg(figure, title)


def test_bar_heights_are_proportional():
    axis = [(2, "one\ntwo")], [(4, "mark"), (9, "outside")]
    svg = bar_chart([1, 2, 4, 8], [0.25, 0.0, 0.5], [0.1, 0.2, NAN], "a < b", *axis)
    assert 'aria-label="a &lt; b"' in svg
    heights = [max(y for _, y in bar) - min(y for _, y in bar) for bar in paths(svg, "bar")]
    assert heights[2] == pytest.approx(2 * heights[0], abs=0.1) and heights[1] == 0
    assert "<title>4–8: 50.0 %</title>" in svg
    assert ">mark<" in svg and "outside" not in svg
    assert len(paths(svg, "after")) == 1
    assert "nan" not in svg


def test_charts_are_the_same_every_time_and_have_the_colours_of_the_page():
    svg = drawn([([0, 1], [1.0, 2.0]), ([0, 1], [2.0, 3.0])])
    assert svg == drawn([([0, 1], [1.0, 2.0]), ([0, 1], [2.0, 3.0])])
    assert "var(--s0)" in svg and "var(--s1)" in svg
    assert not re.search(r"#[0-9a-f]{6}|<style|http|font-family", svg)


def test_lines_rise_with_their_values_and_nan_is_a_gap():
    figure, axes = new_chart()
    draw_curve(axes, [0, 1, 2, 3, 4], [0.0, 5.0, NAN, 10.0, 10.0], run_colour(0))
    set_tooltip(axes.lines[0], "a & b")
    set_scale(axes)
    svg = to_svg(figure, "a < b")
    (line,) = paths(svg, "s0")
    ys = [y for _, y in line]
    assert len(ys) == 4 and ys[0] > ys[1] > ys[2] == ys[3]
    assert (ys[0] - ys[1]) == pytest.approx(ys[1] - ys[2], abs=0.2)
    assert re.search(r'<path d="[^"]*M[^"]*M', svg)  # in two pieces
    assert 'aria-label="a &lt; b"' in svg and "<title>a &amp; b</title>" in svg
    assert "nan" not in svg


def test_a_logarithmic_axis_has_equal_steps_for_equal_factors():
    svg = drawn([([0, 1, 2, 3, 4], [1.0, 1.0, 1.0, 1e3, 1e6]), ([5, 6], [1.0, -1.0])])
    line = paths(svg, "s0")[0]
    assert line[-2][1] - line[-1][1] == pytest.approx(line[-3][1] - line[-2][1], abs=0.2)


def test_a_long_curve_has_a_band_and_single_points_are_drawn():
    svg = drawn([(range(400), [1.0, 2.0] * 200), ([1, 2, 3], [NAN, 3.0, NAN])])
    assert "fill-opacity" in svg or "opacity: 0.16" in svg
    assert svg.count("<use") == 2  # the band and the dot
    assert len(svg) < 40_000


@pytest.mark.parametrize("curves", [[], [([], [])], [([1], [float("inf")])]])
def test_nothing_to_draw_is_said(curves):
    assert "no data" in drawn(curves)


@pytest.mark.parametrize("values", [[0.0], [7.0], [1e-9, 2e-9], [3e12, 1.0], [0.0, 0.0]])
def test_any_range_has_ticks(values):
    svg = drawn([(list(range(len(values))), values)])
    assert "nan" not in svg and "inf" not in svg
    assert len(paths(svg, "line")) >= 2
