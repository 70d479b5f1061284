import json

import numpy as np
import pytest

from scratchdet_jax.errors import UserError
from scratchdet_jax.reports import reading
from scratchdet_jax.reports.reading import read_config, read_run
from tests.run_records import evaluation, train, write


def test_records_are_read_in_order_and_the_last_one_of_a_step_counts(tmp_path):
    records = [train(1), train(2), evaluation(2, 0.1), train(3, 9.0), train(3, 4.0), train(4)]
    run = read_run(write(tmp_path / "a", [*records, {"kind": "note", "step": 1}]), "a")
    steps, loss = reading.series(run.train, "loss")
    np.testing.assert_array_equal(steps, [1, 2, 3, 4])
    np.testing.assert_array_equal(loss, [2, 2, 4, 2])
    assert reading.series(run.eval, "mAP")[1] == [0.1]


def test_null_and_nan_are_gaps(tmp_path):
    records = [evaluation(1, None), evaluation(2, float("nan")), evaluation(3, 0.5)]
    run = read_run(write(tmp_path / "a", records), "a")
    np.testing.assert_array_equal(reading.series(run.eval, "mAP")[1], [np.nan, np.nan, 0.5])


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
    assert reading.run_names([tmp_path / "x" / "a", tmp_path / "x" / "b"]) == ["a", "b"]
    assert reading.run_names([tmp_path / "x" / "a", tmp_path / "y" / "a"]) == ["x/a", "y/a"]
    with pytest.raises(UserError, match="twice"):
        reading.run_names([tmp_path / "a", tmp_path / "b" / ".." / "a"])


def test_running_agrees_with_the_loop():
    values = np.random.default_rng(0).normal(size=40)
    values[[3, 10, 11, 12, 13]] = np.nan
    mean, low, high = reading.running(values, 4)
    for i in range(37):
        window = [value for value in values[i : i + 4] if np.isfinite(value)]
        if window:
            expected = sum(window) / len(window), min(window), max(window)
        else:
            expected = (np.nan,) * 3
        np.testing.assert_allclose((mean[i], low[i], high[i]), expected)
    assert len(mean) == 37


def test_fluctuation_is_the_logged_one():
    logged = [train(1), train(5, gradient_fluctuation=0.5), train(10, gradient_fluctuation=0.2)]
    steps, values = reading.fluctuation(logged)
    assert (steps.tolist(), values.tolist()) == ([5, 10], [0.5, 0.2])
    assert len(reading.fluctuation([])[0]) == 0


BASE = {"name": "x", "model.norm": "batch", "optimizer.learning_rate": 0.05, "seed": 0}


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ([{}, {"model.norm": "none"}], ["norm=batch", "norm=none"]),
        (
            [{"optimizer.learning_rate": 0.001}, {"seed": 3}],
            ["learning_rate=0.001, seed=0", "learning_rate=0.05, seed=3"],
        ),
        ([{}, {"seed": 1}, {"seed": 1}], ["seed=0", "seed=1 (b)", "seed=1 (c)"]),
        ([{"name": "other"}, {}], ["a", "b"]),  # nothing that matters differs
        ([{}, None, {"seed": 2}], ["seed=0", "b", "seed=2"]),
        (
            [{}, {"model.new": 3, "seed": 1}],
            ["seed=0", "seed=1"],
        ),  # the older run has no such field
        ([{"a.x": 1, "b.x": 1}, {"a.x": 2, "b.x": 2}], ["a.x=1, b.x=1", "a.x=2, b.x=2"]),
        ([{f"f{i}": 0 for i in range(9)}, {f"f{i}": 1 for i in range(9)}], ["a", "b"]),
        ([None, None], ["a", "b"]),
        ([{}], ["a"]),
    ],
)
def test_curves_are_named_by_what_differs(changes, labels):
    configs = [None if change is None else BASE | change for change in changes]
    assert reading.label_by_difference("abc"[: len(configs)], configs) == labels


def test_the_config_comes_from_the_checkpoint(tmp_path):
    from scratchdet_jax.run.checkpoints import Checkpoints, RunInfo
    from scratchdet_jax.run.state import TrainState
    from tests.tiny import tiny_config

    assert read_config(tmp_path) is None
    state = TrainState(step=np.int32(3), params={"w": np.ones(2)}, batch_stats={}, opt_state=())
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, state, RunInfo(tiny_config(**{"model.norm": "none"}), ("a",)), None)
    checkpoints.close()
    config = read_config(tmp_path)
    assert (config["model.norm"], config["batch_size"]) == ("none", 16)
