import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from configs import voc300
from scratchdet_jax.reports.doctor.anchors import too_long, too_small, what_if
from scratchdet_jax.reports.doctor.fit import Levels, make_levels


@settings(deadline=None, max_examples=60)
@given(st.floats(0.2, 0.9), st.floats(1.0, 12.0), st.floats(0.02, 0.4), st.booleans())
def test_too_elongated_or_too_small_boxes_reach_no_square_anchor(t, aspect, side, tall):
    """Compares with a search over all sizes of a square anchor at the box's centre."""
    height, width = (side / np.sqrt(aspect), side * np.sqrt(aspect))[:: -1 if tall else 1]
    box = np.array([[0.5 - height / 2, 0.5 - width / 2, 0.5 + height / 2, 0.5 + width / 2]])
    half = np.geomspace(0.001, 1, 4000) / 2
    anchors = np.stack([0.5 - half, 0.5 - half, 0.5 + half, 0.5 + half], axis=1)
    levels = Levels(anchors, (len(anchors),), ((1, 2),), ((1, 1),), ((),), 100)
    sides = 2 * half
    overlap = np.minimum(sides, height) * np.minimum(sides, width)
    best = (overlap / (sides**2 + height * width - overlap)).max()
    assume(abs(best - t) > 1e-3)
    assert too_long(box, levels, t)[0] == (best < t)
    smallest = np.array([[0.4, 0.4, 0.6, 0.6]])
    overlap = min(height, 0.2) * min(width, 0.2)
    reach = overlap / (0.04 + height * width - overlap)
    if too_small(box, levels._replace(anchors=smallest), t)[0]:
        assert reach < t


def test_ssds_rule_from_ten_percent_gives_the_published_sizes():
    config = voc300.get_config()
    boxes = make_levels(config).anchors[::97]
    outcomes = what_if(config, boxes, boxes[:0], (0.5, 10.0, 60.0))
    (published,) = outcomes  # half a percent is below two pixels, 60 leaves no room
    assert published.min_percent == config.anchors.min_percent
    assert published.max_percent == config.anchors.max_percent
    assert published.reached == 1.0
    assert np.isnan(published.reached_augmented)
