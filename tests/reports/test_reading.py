import json

import numpy as np
import pytest

from scratchdet_jax.errors import UserError
from scratchdet_jax.reports import curves
from scratchdet_jax.reports.curves import read_run
from tests.run_records import evaluation, train, write


def test_records_are_read_in_order_and_the_last_one_of_a_step_counts(tmp_path):
    records = [train(1), train(2), evaluation(2, 0.1), train(3, 9.0), train(3, 4.0), train(4)]
    run = read_run(write(tmp_path / "a", [*records, {"kind": "note", "step": 1}]), "a")
    steps, loss = curves.series(run.train, "loss")
    np.testing.assert_array_equal(steps, [1, 2, 3, 4])
    np.testing.assert_array_equal(loss, [2, 2, 4, 2])
    assert curves.series(run.eval, "mAP")[1] == [0.1]


def test_null_and_nan_are_gaps(tmp_path):
    records = [evaluation(1, None), evaluation(2, float("nan")), evaluation(3, 0.5)]
    run = read_run(write(tmp_path / "a", records), "a")
    np.testing.assert_array_equal(curves.series(run.eval, "mAP")[1], [np.nan, np.nan, 0.5])


def test_truncated_last_line_is_skipped_with_a_warning(tmp_path, capsys):
    run = read_run(write(tmp_path / "a", [train(1)], '{"kind": "train", "st'), "a")
    assert len(run.train) == 1
    assert "truncated" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("", "no record"),
        ('{"kind": "tr\n' + json.dumps(train(1)), "line 1.*garbled"),
        ("[1]\n" + json.dumps(train(1)), "line 1.*garbled"),
        ('{"kind": "train"}\n' + json.dumps(train(1)), "line 1.*garbled"),
        ('{"kind": "tr', "no record"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        read_run(tmp_path, "a")


def test_names_are_folders_with_parents_where_those_are_equal(tmp_path):
    assert curves.run_names([tmp_path / "x" / "a", tmp_path / "x" / "b"]) == ["a", "b"]
    assert curves.run_names([tmp_path / "x" / "a", tmp_path / "y" / "a"]) == ["x/a", "y/a"]
    with pytest.raises(UserError, match="twice"):
        curves.run_names([tmp_path / "a", tmp_path / "b" / ".." / "a"])


def test_running_agrees_with_the_loop():
    values = np.random.default_rng(0).normal(size=40)
    values[[3, 10, 11, 12, 13]] = np.nan
    mean, low, high = curves.running(values, 4)
    for i in range(37):
        window = [value for value in values[i : i + 4] if np.isfinite(value)]
        if window:
            expected = sum(window) / len(window), min(window), max(window)
        else:
            expected = (np.nan,) * 3
        np.testing.assert_allclose((mean[i], low[i], high[i]), expected)
    assert len(mean) == 37
