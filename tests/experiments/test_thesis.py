"""The plan, the bookkeeping and the verdicts of the thesis; training is simulated."""

import itertools
import json
import math
import statistics

import cv2
import numpy as np
import pytest

from configs import shapes
from experiments.thesis import __main__ as thesis
from experiments.thesis import plan, report
from scratchdet_jax.config.fields import flatten, number_of_steps
from scratchdet_jax.detector import build_detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.models import feature_sizes
from tests.command import exit_status

IMAGES = 160  # ten updates


def test_rows_are_those_of_the_paper():
    rows = {row.key: row for row in plan.rows()}
    assert len(rows) == 13
    bn = [row for row in rows.values() if row.key.startswith("bn_")]
    seen = {(r.fields["model.norm"], r.fields["model.head_norm"], r.rate) for r in bn}
    both = set(itertools.product(("none", "batch"), ("none", "batch"), ("low", "high")))
    assert seen == both | {("none", "batch", "middle")}
    stems = [row for row in rows.values() if row.key.startswith("stem_")]
    seen = {(row.fields["model.stem"], row.fields["model.stem_stride"]) for row in stems}
    assert seen == set(itertools.product(("root", "conv7"), (1, 2)))
    for row in stems:
        model = plan.run_config(row, 0, IMAGES, "data").model
        assert (model.backbone, model.norm, model.head_norm) == ("resnet", "batch", "batch")


def test_a_run_is_the_shapes_recipe_with_the_changes_of_its_row():
    recipe = flatten(shapes.get_config())
    for row in plan.rows():
        config = flatten(plan.run_config(row, 2, IMAGES, "there"))
        changed = {name for name in recipe if config[name] != recipe[name]}
        assert changed <= {
            "name",
            "seed",
            "image_size",
            "train_images",
            "data.dir",
            "eval.metric",
            "log_every",
            "keep_checkpoints",
            "optimizer.learning_rate",
            *row.fields,
        }
        assert config["seed"] == 2 and config["optimizer.learning_rate"] == plan.RATES[row.rate]


def test_both_tables_have_the_same_source_maps_and_anchors():
    made = {}
    for row in plan.rows():
        if row.key.startswith("stem_") or row.key == "bn_none_low":
            config = plan.run_config(row, 0, IMAGES, "data")
            detector = build_detector(config, ("a",))
            made[row.key] = feature_sizes(detector.model, config.image_size), detector.anchors
    sizes, anchors = made["stem_root_stride1"]
    for other_sizes, other in made.values():
        assert other_sizes == sizes
        np.testing.assert_array_equal(other, anchors)


def test_orderings_name_rows_and_figures():
    keys = {row.key for row in plan.rows()}
    for ordering in plan.orderings():
        assert {*ordering.above, *ordering.below} <= keys
        assert ordering.figure in report.Outcome._fields


def slow_noise(a, b):
    """Half width of Student's 95 % interval, for three seeds each."""
    variances = [sum((x - sum(v) / 3) ** 2 for x in v) / 2 for v in (a, b)]
    return 2.776 * math.sqrt(sum(variances) / 3)


@pytest.mark.parametrize(
    ("above", "below", "verdict"),
    [
        ((0.50, 0.51, 0.52), (0.40, 0.41, 0.42), "holds"),
        ((0.40, 0.41, 0.42), (0.50, 0.51, 0.52), "does not hold"),
        ((0.40, 0.50, 0.60), (0.35, 0.47, 0.58), "within the noise"),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), "within the noise"),  # all diverged
        ((0.3, 0.3, 0.3), (0.0, 0.0, 0.0), "holds"),
    ],
)
def test_verdicts(above, below, verdict):
    word, difference, noise = report.compare(above, below)
    assert word == verdict
    assert difference == pytest.approx(sum(above) / 3 - sum(below) / 3)
    assert noise == pytest.approx(slow_noise(above, below), rel=2e-3, abs=1e-9)


def test_one_seed_shows_no_noise():
    assert report.compare([0.5], [0.4, 0.3]) == (
        "as published, but one seed shows no noise",
        pytest.approx(0.15),
        None,
    )
    assert report.compare([0.1], [0.4])[0].startswith("not as published")


def outcome(ap50):
    return report.Outcome(ap50, ap50 / 2, None, 2.0, 0.1)


def test_a_method_is_judged_at_its_best_rate():
    ordering = plan.Ordering("x", ("a", "b"), ("c",), "")
    outcomes = {"a": {0: outcome(0.2)}, "b": {0: outcome(0.6)}, "c": {0: outcome(0.5)}}
    assert report.judge(ordering, outcomes)[1] == pytest.approx(0.1)
    assert report.judge(ordering._replace(figure="ap_small"), outcomes)[1] == pytest.approx(0.05)
    del outcomes["a"]
    assert report.judge(ordering, outcomes) is None


def train_record(step, norm, change):
    fields = {"loss": 1.0, "gradient_norm": norm, "gradient_fluctuation": change}
    return {"kind": "train", "step": step, **fields}


def write(workdir, records):
    workdir.mkdir(exist_ok=True)
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def test_outcomes_are_read_from_the_metrics(tmp_path):
    trained = [train_record(step, 2.0 * step, 1.0) for step in range(1, 5)]
    evaluation = {"kind": "eval", "step": 4, "mAP": 0.2, "AP50": 0.4, "APs": 0.1}
    assert report.read_outcome(tmp_path, 4) is None  # not started
    write(tmp_path, [])
    assert report.read_outcome(tmp_path, 4) is None
    write(tmp_path, trained)
    assert report.read_outcome(tmp_path, 4) is None  # not evaluated
    write(tmp_path, [*trained, evaluation])
    assert report.read_outcome(tmp_path, 4) == report.Outcome(0.4, 0.1, None, 7.0, 1 / 7)
    assert report.read_outcome(tmp_path, 8) is None  # that was not the end
    write(tmp_path, [*trained[:2], {"kind": "diverged", "step": 3, "quantity": "loss"}])
    assert report.read_outcome(tmp_path, 4) == report.Outcome(0.0, 0.0, 3, None, None)


class Trainer:
    """Replaces training: writes the log of a run, and counts the runs."""

    def __init__(self):
        self.trained = []
        self.fail = None

    def __call__(self, config, workdir):
        self.trained.append(workdir.name)
        if self.fail:
            raise self.fail
        steps = number_of_steps(config)
        if config.model.norm == "none" and config.optimizer.learning_rate > 0.01:
            write(workdir, [{"kind": "diverged", "step": 1, "quantity": "loss"}])
            raise UserError("training diverged")
        score = 0.3 + 0.1 * (config.model.norm == "batch") + 0.01 * config.seed
        records = [train_record(step, 5.0 / step, 0.1) for step in range(1, steps + 1)]
        evaluation = {"kind": "eval", "step": steps, "mAP": 0.1, "AP50": score, "APs": score / 2}
        write(workdir, [*records, evaluation])


@pytest.fixture
def trainer(monkeypatch):
    made = Trainer()
    monkeypatch.setattr(thesis, "train_and_evaluate", made)
    return made


@pytest.mark.slow
def test_all_runs_are_trained_once_and_reported(tmp_path, trainer, capsys, monkeypatch):
    drawn = []
    draw = report.draw
    monkeypatch.setattr(report, "draw", lambda *args: drawn.append(args))
    command = [f"--output={tmp_path / 'out'}", f"--images={IMAGES}", "--seeds", "0", "1"]
    assert exit_status(thesis.main, *command) == 0
    assert len(trainer.trained) == len(set(trainer.trained)) == 26
    assert len(drawn) == 26  # a stopped experiment has a report of its finished runs
    shown = capsys.readouterr().out
    text = (tmp_path / "out" / "table.md").read_text()
    assert text in shown
    rows = {tuple(line.split(" | ")[:2]): line for line in text.splitlines()}
    assert "0.405 ± 0.007" in rows[("| BN in both", "0.05")]
    assert "0.000 ± 0.000 (diverged: 2 of 2, at step 1, 1)" in rows[("| no BN", "0.05")]
    assert rows[("| 7×7, stride 2", "0.05")].endswith("| 73.1 |")
    assert "| no BN: low rate above high | not trained | +0.305 | ±0.022 | holds |" in text
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    values = [run["ap50"] for run in results["runs"]["bn_both_low"].values()]
    assert statistics.fmean(values) == pytest.approx(0.405)

    # Again: nothing is left to do. Only a lost run is trained again.
    assert exit_status(thesis.main, *command) == 0
    assert len(trainer.trained) == 26
    (tmp_path / "out" / "bn_both_low_seed1" / "metrics.jsonl").unlink()
    assert exit_status(thesis.main, *command) == 0
    assert trainer.trained[26:] == ["bn_both_low_seed1"]
    draw(*drawn[-1])
    picture = cv2.imread(str(tmp_path / "out" / "figure.png"))
    assert picture.shape[1] > 1000 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_a_folder_of_another_experiment_is_refused(tmp_path, trainer, capsys):
    row = plan.rows()[4]
    thesis.train_row(row, 0, IMAGES, tmp_path, "data")
    thesis.train_row(row, 0, IMAGES, tmp_path, "elsewhere")  # the data folder does not matter
    record = plan.run_folder(tmp_path, row, 0) / "run.json"
    fields = json.loads(record.read_text())
    del fields["anchors.rounded"]  # a run older than this field
    record.write_text(json.dumps(fields))
    thesis.train_row(row, 0, IMAGES, tmp_path, "data")
    with pytest.raises(UserError, match=r"holds a run with config.train_images = 160, not 320"):
        thesis.train_row(row, 0, 320, tmp_path, "data")
    assert len(trainer.trained) == 1


def test_failures_other_than_divergence_are_reported(tmp_path, trainer, capsys):
    trainer.fail = UserError("the disk is full")
    assert exit_status(thesis.main, "--quick", f"--output={tmp_path}") == 1
    assert "error: the disk is full" in capsys.readouterr().err
    trainer.fail = KeyboardInterrupt()
    assert exit_status(thesis.main, "--quick", f"--output={tmp_path}") == 130
    assert "stopped by Ctrl-C" in capsys.readouterr().err
