import re

import pytest

from scratchdet_jax.reports.page.charts import Axis, Curve, bars_svg, lines_svg


def test_bar_heights_are_proportional():
    svg = bars_svg(
        [0, 1, 2, 4], [0.25, 0.0, 0.5], [0.1, 0.2, float("nan")], "a < b", Axis([(1, "one")])
    )
    assert 'aria-label="a &lt; b"' in svg
    heights = [float(h) for h in re.findall(r'<rect[^>]* height="([\d.]+)"', svg)]
    assert len(heights) == 2  # empty bins are not drawn
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.1)
    assert "nan" not in svg


def points(svg):
    """The points of each line."""
    lines = re.findall(r'<polyline points="([^"]*)"', svg)
    return [[tuple(map(float, p.split(","))) for p in line.split()] for line in lines]


def test_lines_rise_with_their_values_and_nan_is_a_gap():
    nan = float("nan")
    svg = lines_svg([Curve([0, 1, 2, 3, 4], [0.0, 5.0, nan, 10.0, 10.0], "s0", "a & b")], "a < b")
    first, second = points(svg)
    assert len(first) == len(second) == 2
    assert first[0][1] > first[1][1] > second[0][1] == second[1][1]
    assert (first[0][1] - first[1][1]) == pytest.approx(first[1][1] - second[0][1], abs=0.2)
    assert 'aria-label="a &lt; b"' in svg and "<title>a &amp; b</title>" in svg
    assert "nan" not in svg


def test_a_logarithmic_axis_has_equal_steps_for_equal_factors():
    svg = lines_svg([Curve([0, 1, 2, 3], [1.0, 10.0, 100.0, -1.0], "s0")], "title", log=True)
    ((a, b, c),) = points(svg)
    assert a[1] - b[1] == pytest.approx(b[1] - c[1], abs=0.2)


def test_a_band_and_single_points_are_drawn():
    band = Curve([0, 1], [1.0, 2.0], "s0", low=[0.5, 1.0], high=[2.0, 4.0])
    svg = lines_svg([band, Curve([1], [3.0], "s1")], "title")
    assert svg.count("<polygon") == svg.count("<circle") == 1


@pytest.mark.parametrize("curves", [[], [Curve([], [], "s0")], [Curve([1], [float("inf")], "s0")]])
def test_nothing_to_draw_is_said(curves):
    assert "no data" in lines_svg(curves, "title")


@pytest.mark.parametrize("values", [[0.0], [7.0], [1e-9, 2e-9], [3e12, 1.0], [0.0, 0.0]])
def test_any_range_has_ticks(values):
    for log in (False, True):
        svg = lines_svg([Curve(list(range(len(values))), values, "s0")], "title", log=log)
        assert "nan" not in svg and "inf" not in svg
        if any(values):
            assert svg.count('class="grid"') >= 2
