import cv2
import numpy as np

from scratchdet_jax.reports.curves import CHARTS, RunRecords, draw_runs
from scratchdet_jax.tools import plot
from tests.command import exit_status
from tests.run_records import evaluation, train, write


def test_picture_of_runs_with_different_lengths_records_and_ends(tmp_path, capsys):
    rng = np.random.default_rng(0)
    first = [
        train(s, 5 / s + 0.2 * rng.random(), gradient_norm_head=1.0 / s, images_per_second=50.0)
        for s in range(1, 400)
    ]
    write(tmp_path / "a", [*first, evaluation(200, 0.4), evaluation(399, 0.6)])
    write(tmp_path / "b", [train(s, 3.0) for s in range(10, 100, 10)])  # no evaluation
    wild = [train(s, 10.0**s, gradient_norm=10.0**s) for s in (1, 2, 3, 4)]
    write(tmp_path / "c", [*wild, {"kind": "diverged", "step": 5, "quantity": "loss"}])
    write(tmp_path / "d", [evaluation(5, None)])  # nothing but an undefined evaluation
    write(tmp_path / "e", [{"kind": "diverged", "step": 1, "quantity": "loss"}])
    output = tmp_path / "new" / "curves.png"
    runs = [tmp_path / name for name in "abcde"]
    assert exit_status(plot.main, *runs, f"--output={output}") == 0
    picture = cv2.imread(str(output))
    assert picture.shape[1] > 1000 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    assert str(output) in capsys.readouterr().out


def test_what_is_drawn():
    norms = ({"gradient_norm": 3.0}, {"gradient_norm": 5.0}, {"gradient_norm": 1})
    changes = ({}, {"gradient_fluctuation": 2.0}, {"gradient_fluctuation": 4.0})
    records = [train(s, **n, **c) for s, n, c in zip((1, 2, 3), norms, changes, strict=True)]
    first = RunRecords("a", records, [], diverged_at=4)
    second = RunRecords("b", [train(9, images_per_second=7.0)], [evaluation(5, 0.25)])
    panels = draw_runs([first, second]).axes
    titles = [panel.get_title() for panel in panels]
    assert titles[:3] == [
        "loss",
        "gradient L2 norm",
        "fluctuation: mean |change of the gradient norm|",
    ]
    _, norm, fluctuation = panels[:3]
    mean_ap, throughput = (
        panels[titles.index(t)] for t in (CHARTS["mAP"], CHARTS["images_per_second"])
    )
    np.testing.assert_array_equal(norm.lines[0].get_ydata(), [3, 5, 1])
    assert (norm.lines[1].get_marker(), norm.lines[1].get_xdata()[0]) == ("x", 3)
    np.testing.assert_array_equal(fluctuation.lines[0].get_xdata(), [2, 3])
    np.testing.assert_array_equal(fluctuation.lines[0].get_ydata(), [2, 4])
    np.testing.assert_array_equal(mean_ap.lines[1].get_ydata(), [0.25])
    np.testing.assert_array_equal(throughput.lines[1].get_ydata(), [7])
    names = panels[0].get_legend_handles_labels()[1]
    assert names == ["a (diverged at step 4)", "b"]


def test_mistakes_are_reported(tmp_path, capsys):
    assert exit_status(plot.main, tmp_path, f"--output={tmp_path / 'a.png'}") == 1
    assert capsys.readouterr().err.startswith("error: ")
    run = write(tmp_path / "a", [train(1)])
    assert exit_status(plot.main, run, f"--output={tmp_path / 'a.nosuch'}") == 1
    assert "cannot be written" in capsys.readouterr().err
