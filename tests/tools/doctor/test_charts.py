import re

import pytest

from scratchdet_jax.tools.doctor.charts import Axis, bars_svg


def test_bar_heights_are_proportional():
    svg = bars_svg(
        [0, 1, 2, 4], [0.25, 0.0, 0.5], [0.1, 0.2, float("nan")], "a < b", Axis([(1, "one")])
    )
    assert 'aria-label="a &lt; b"' in svg
    heights = [float(h) for h in re.findall(r'<rect[^>]* height="([\d.]+)"', svg)]
    assert len(heights) == 2  # empty bins are not drawn
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.1)
    assert "nan" not in svg
