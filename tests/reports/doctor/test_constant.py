import math

import pytest

from scratchdet_jax.reports.baseline import ConstantBox
from scratchdet_jax.reports.doctor.splits import SplitScore, constant_findings, eval_split


@pytest.mark.parametrize(
    ("dataset", "spec", "names", "expected"),
    [
        ("shapes", "shapes:validation", ["train", "validation"], "validation"),
        ("voc_folder/a", "test", ["test", "train", "val"], "test"),
        ("voc_folder/a", "voc/2007:test", ["test", "train", "val"], "val"),
        ("voc_folder/a", "", ["train", "mine"], "mine"),
        ("voc_folder/a", "val", ["train"], "train"),
        ("voc/2007", "voc/2007:test", ["train", "validation", "test"], "test"),
        ("a:x,b:test", "b:test", ["a:x", "b:test"], "b:test"),
        ("a:train[:9]+val", "a:val", ["train[:9]", "val"], "val"),
        ("a", "val", [], None),
    ],
)
def test_the_split_for_evaluation(dataset, spec, names, expected):
    assert eval_split(dataset, spec, names) == expected


@pytest.mark.parametrize(("mean", "count"), [(0.54, 1), (0.2, 1), (0.19, 0), (math.nan, 0)])
def test_a_high_score_is_a_finding(mean, count):
    box = ConstantBox(mean, {"cat": mean}, {"cat": [0.1, 0.1, 0.9, 0.9]}, 87)
    findings = list(constant_findings(SplitScore("val", "VOC", box)))
    assert len(findings) == count
    for finding in findings:
        assert finding.text.startswith(
            "One box per class, in the same place on every image of val, scores "
            f"mAP {mean:.2f} (VOC). A good mAP there says little"
        )
