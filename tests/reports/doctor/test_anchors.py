import numpy as np

from scratchdet_jax.reports.doctor.anchors import summarize
from scratchdet_jax.reports.doctor.fit import Fit


def test_summary_shares():
    best = np.array([[0.6, 0.2], [0.4, 0.3], [0.1, 0.7], [0.5, 0.5]], np.float32)
    fit = Fit(
        np.zeros((4, 4), np.float32),
        np.array([1, 1, 2, 2]),
        np.arange(4),
        best,
        np.array([3, 1, 2, 0]),
        np.array([2, 0, 2, 0]),
    )
    summary = summarize(fit, 0.5, 3)
    assert summary["reached"] == 0.75
    assert summary["reached_by_level"] == [0.5, 0.5]
    assert summary["home"] == [0.75, 0.25]
    assert (summary["forced"], summary["untrained"], summary["anchors_per_box"]) == (
        0.25,
        0.25,
        1.5,
    )
    assert summary["count_by_class"] == [2, 2, 0]
    assert summary["reached_by_class"][:2] == [0.5, 1.0]
    assert np.isnan(summary["reached_by_class"][2])
    assert summary["reached_by_class_and_level"][:2] == [[0.5, 0.0], [0.5, 1.0]]
