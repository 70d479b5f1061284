import json

import cv2
import numpy as np
import pytest

from scratchdet_jax.errors import UserError
from scratchdet_jax.tools import plot


def train(step, loss=2.0, **fields):
    return {
        "kind": "train",
        "step": step,
        "loss": loss,
        "loss_classification": 0.7 * loss,
        "loss_localization": 0.3 * loss,
        "gradient_norm": 5.0 / (1 + step),
        "learning_rate": 0.05,
        **fields,
    }


def evaluation(step, value):
    return {"kind": "eval", "step": step, "mAP": value, "AP": {"cat": value}}


def write(folder, records, tail=""):
    folder.mkdir(parents=True)
    text = "".join(json.dumps(record) + "\n" for record in records) + tail
    (folder / "metrics.jsonl").write_text(text)
    return folder


def test_records_are_read_in_order_and_the_later_of_a_step_counts(tmp_path):
    records = [train(1), train(2), evaluation(2, 0.1), train(3, 9.0), train(3, 4.0), train(4)]
    run = plot.read_run(write(tmp_path / "a", [*records, {"kind": "note", "step": 1}]), "a")
    steps, loss = plot.series(run.train, "loss")
    np.testing.assert_array_equal(steps, [1, 2, 3, 4])
    np.testing.assert_array_equal(loss, [2, 2, 4, 2])
    assert plot.series(run.eval, "mAP")[1] == [0.1]


def test_null_and_nan_are_gaps(tmp_path):
    records = [evaluation(1, None), evaluation(2, float("nan")), evaluation(3, 0.5)]
    run = plot.read_run(write(tmp_path / "a", records), "a")
    np.testing.assert_array_equal(plot.series(run.eval, "mAP")[1], [np.nan, np.nan, 0.5])


def test_truncated_last_line_is_skipped_with_a_warning(tmp_path, capsys):
    run = plot.read_run(write(tmp_path / "a", [train(1)], '{"kind": "train", "st'), "a")
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
        plot.read_run(tmp_path, "a")


def test_names_are_folders_and_longer_where_equal(tmp_path):
    assert plot.run_names([tmp_path / "x" / "a", tmp_path / "x" / "b"]) == ["a", "b"]
    assert plot.run_names([tmp_path / "x" / "a", tmp_path / "y" / "a"]) == ["x/a", "y/a"]
    with pytest.raises(UserError, match="twice"):
        plot.run_names([tmp_path / "a", tmp_path / "b" / ".." / "a"])


def test_running_agrees_with_the_loop():
    values = np.random.default_rng(0).normal(size=40)
    values[[3, 10, 11, 12, 13]] = np.nan
    mean, low, high = plot.running(values, 4)
    for i in range(37):
        stretch = [value for value in values[i : i + 4] if np.isfinite(value)]
        if stretch:
            expected = sum(stretch) / len(stretch), min(stretch), max(stretch)
        else:
            expected = (np.nan,) * 3
        np.testing.assert_allclose((mean[i], low[i], high[i]), expected)
    assert len(mean) == 37


def test_picture_of_two_runs(tmp_path, capsys):
    rng = np.random.default_rng(0)
    first = [train(s, 5 / s + 0.2 * rng.random()) for s in range(1, 400)]
    write(tmp_path / "a", [*first, evaluation(200, 0.4), evaluation(399, 0.6)])
    write(tmp_path / "b", [train(s, 3.0) for s in range(10, 100, 10)])
    output = tmp_path / "new" / "curves.png"
    runs = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert plot.main([*runs, f"--output={output}"]) == 0
    picture = cv2.imread(str(output))
    assert picture.shape[1] > 1000 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    assert str(output) in capsys.readouterr().out


def test_what_is_drawn(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plot.plt, "close", drawn.append)
    first = plot.Run("a", [train(s, gradient_norm=n) for s, n in ((1, 3.0), (2, 5.0), (3, 1))], [])
    second = plot.Run("b", [], [evaluation(5, 0.25)])
    plot.draw([first, second], tmp_path / "a.png")
    panels = drawn[0].axes
    titles = [panel.get_title() for panel in panels]
    norm = panels[titles.index("gradient L2 norm")]
    fluctuation = panels[titles.index("|change of gradient norm| between steps")]
    mean_ap = panels[titles.index("mAP")]
    np.testing.assert_array_equal(norm.lines[0].get_ydata(), [3, 5, 1])
    np.testing.assert_array_equal(fluctuation.lines[0].get_xdata(), [2, 3])
    np.testing.assert_array_equal(fluctuation.lines[0].get_ydata(), [2, 4])
    np.testing.assert_array_equal(mean_ap.lines[1].get_ydata(), [0.25])
    assert [line.get_label() for line in panels[0].lines] == ["a", "b"]


def test_entry_point_says_what_is_wrong(tmp_path, capsys):
    assert plot.main([str(tmp_path), f"--output={tmp_path / 'a.png'}"]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    run = write(tmp_path / "a", [train(1)])
    assert plot.main([str(run), f"--output={tmp_path / 'a.nosuch'}"]) == 1
    assert "cannot be written" in capsys.readouterr().err
