"""The landscape of two runs over their training, from walks that are known."""

import json
import types

import cv2
import numpy as np
import pytest

from experiments.thesis import landscape, plan
from scratchdet_jax.tools.landscape import Walk
from scratchdet_jax.training.loop import train_and_evaluate
from tests.command import exit_status

NONE, BOTH = (f"{key}_seed0" for key in plan.WALKED)


@pytest.fixture
def walked(monkeypatch):
    """Replaces the runs: checkpoints of 2, 4 (and 6), and walks whose loss falls by the size."""
    kept = {NONE: [2, 4, 6], BOTH: [1, 2, 4]}

    class Kept:
        def __init__(self, folder, read_only):
            assert read_only
            self.steps = lambda: kept[folder.name]
            self.close = lambda: None

    def walk(run, step_sizes, batches, data_dir):
        sizes, scale = np.array(step_sizes), 10.0 if run.workdir.name == NONE else 1.0
        norm = scale * run.step
        changes = scale * norm * sizes
        one = Walk(5.0, norm, 5.0 - scale * sizes, changes, changes / (sizes * norm))
        return [one] * batches

    def opened(folder, step):
        return types.SimpleNamespace(workdir=folder, step=int(step))

    monkeypatch.setattr(landscape, "Checkpoints", Kept)
    monkeypatch.setattr(landscape, "open_run", opened)
    monkeypatch.setattr(landscape, "measure_run", walk)
    return kept


def test_both_rows_are_measured_at_every_common_step(tmp_path, walked):
    assert exit_status(landscape.main, f"--output={tmp_path}") == 0
    found = json.loads((tmp_path / "landscape.json").read_text())
    largest = landscape.STEP_SIZES[-1]
    for key, scale in (("none", 10), ("both", 1)):
        assert [summary["step"] for summary in found[key]] == [2, 4]
        for summary in found[key]:
            assert summary["loss_range"] == pytest.approx(scale * largest)
            assert summary["beta_smoothness"] == pytest.approx(scale)
    lines = (tmp_path / "landscape.md").read_text().splitlines()
    assert lines[2:] == [
        "| 2 | no BN | 5 | 20 | 0.5 | 0.5 | 10 |",
        "| 2 | BN in both | 5 | 2 | 0.05 | 0.05 | 1 |",
        "| 4 | no BN | 5 | 40 | 0.5 | 0.5 | 10 |",
        "| 4 | BN in both | 5 | 4 | 0.05 | 0.05 | 1 |",
    ]
    assert cv2.imread(str(tmp_path / "landscape.png")).shape[1] > 1000


def test_runs_without_a_common_step_are_refused(tmp_path, walked, capsys):
    walked[BOTH] = [3]
    assert exit_status(landscape.main, f"--output={tmp_path}") == 1
    assert "no checkpoint of the same step" in capsys.readouterr().err


@pytest.mark.slow
def test_checkpoints_of_real_runs_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(landscape, "BATCHES", 1)
    monkeypatch.setattr(landscape, "STEP_SIZES", (0.001, 0.01))
    study = plan.shapes_study(str(tmp_path / "data"))
    for row in study.rows():
        if row.key in plan.WALKED:
            config = plan.run_config(study, row, 0, 16)
            config.batch_size = config.eval.batch_size = 8
            config.model.width, config.image_size = 0.0625, 64
            config.data.eval, config.checkpoint_every = "", 1
            train_and_evaluate(config, plan.run_folder(tmp_path, row.key, 0))
    assert exit_status(landscape.main, f"--output={tmp_path}") == 0
    found = json.loads((tmp_path / "landscape.json").read_text())
    for key, summaries in found.items():
        assert [summary["step"] for summary in summaries] == [1, 2]
        for summary in summaries:
            assert f"{key}_seed0" in summary["run"]
            along = [summary["loss"] + step["loss_change"] for step in summary["steps"]]
            values = [summary["loss"], *along]
            assert summary["loss_range"] == pytest.approx(max(values) - min(values), rel=1e-4)
