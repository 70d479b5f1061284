"""The plan, the bookkeeping and the verdicts of the thesis; training is simulated."""

import itertools
import json
import math
import statistics

import cv2
import numpy as np
import pytest

from experiments.thesis import __main__ as thesis
from experiments.thesis import plan, report
from scratchdet_jax.config.defaults import flatten, number_of_steps
from scratchdet_jax.detector import build_detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.models.ssd import feature_sizes
from tests.command import exit_status

IMAGES = 160  # ten updates
SHAPES = plan.shapes_study("data")
PHOTOS = plan.photo_study("data", "BCCD")


def shapes_row(key):
    return next(row for row in SHAPES.rows() if row.key == key)


def test_rows_are_those_of_the_paper():
    norms, stems = SHAPES.tables.values()
    places = {(row.fields["model.norm"], row.fields["model.head_norm"]) for row in norms}
    assert places == set(itertools.product(("none", "batch"), ("none", "batch")))
    assert [row.key for row in PHOTOS.rows()] == [row.key for row in norms[:4]]
    seen = {(row.fields["model.stem"], row.fields["model.stem_stride"]) for row in stems}
    assert seen == set(itertools.product(("root", "conv7"), (1, 2)))
    for row in stems:
        model = plan.run_config(SHAPES, row, 0, IMAGES).model
        assert (model.backbone, model.norm, model.head_norm) == ("resnet", "batch", "batch")


@pytest.mark.parametrize("study", [SHAPES, PHOTOS], ids=["shapes", "photos"])
def test_rates_are_the_papers_or_chosen(study):
    rates = {row.key: row.rate for row in study.rows() if row.key in plan.NORMS}
    assert rates == {"none": rates["none"], "head": 0.01, "backbone": 0.05, "both": 0.05}
    assert rates["none"] in plan.CANDIDATES
    assert [row.rate for row in study.candidates] == list(plan.CANDIDATES)
    assert all(row.fields == study.rows()[0].fields for row in study.candidates)


@pytest.mark.parametrize("study", [SHAPES, PHOTOS], ids=["shapes", "photos"])
def test_a_run_is_the_recipe_with_the_changes_of_its_row(study):
    recipe = flatten(study.recipe())
    for row in study.rows():
        config = flatten(plan.run_config(study, row, 2, IMAGES))
        changed = {name for name in recipe if config[name] != recipe[name]}
        assert changed <= {
            "name",
            "seed",
            "train_images",
            "log_every",
            "keep_checkpoints",
            "eval.every_steps",
            "optimizer.learning_rate",
            *study.fields,
            *row.fields,
        }
        assert config["seed"] == 2 and config["optimizer.learning_rate"] == row.rate


def test_only_the_first_seed_is_evaluated_before_the_end():
    row = SHAPES.rows()[0]
    periods = [plan.run_config(SHAPES, row, seed, 9600).eval.every_steps for seed in SHAPES.seeds]
    assert periods == [100, 0, 0, 0, 0]  # of 600 updates


def test_photos_that_choose_are_not_those_of_the_result():
    row = PHOTOS.rows()[0]
    assert plan.run_config(PHOTOS, row, 0, IMAGES).data.eval == "test"
    assert plan.run_config(PHOTOS, row, 0, IMAGES, choosing=True).data.eval == "val"
    assert plan.CHOICE_SEED not in (*SHAPES.seeds, *PHOTOS.seeds)


@pytest.mark.parametrize("rows", SHAPES.tables.values())
def test_the_rows_of_a_table_have_the_same_source_maps_and_anchors(rows):
    made = []
    for row in rows:
        config = plan.run_config(SHAPES, row, 0, IMAGES)
        detector = build_detector(config, ("a",))
        made.append((feature_sizes(detector.model, config.image_size), detector.anchors))
    for sizes, anchors in made[1:]:
        assert sizes == made[0][0]
        np.testing.assert_array_equal(anchors, made[0][1])


@pytest.mark.parametrize("study", [SHAPES, PHOTOS], ids=["shapes", "photos"])
def test_orderings_name_rows_and_figures(study):
    keys = {row.key for row in study.rows()}
    for ordering in study.orderings:
        assert {ordering.above, ordering.below} <= keys
        assert ordering.figure in study.figures


def slow_noise(differences):
    """Half width of Student's 95 % interval of the mean of three differences."""
    mean = sum(differences) / 3
    variance = sum((difference - mean) ** 2 for difference in differences) / 2
    return 4.303 * math.sqrt(variance / 3)


@pytest.mark.parametrize(
    ("above", "below", "verdict"),
    [
        ((0.50, 0.51, 0.53), (0.40, 0.41, 0.42), "holds"),
        ((0.40, 0.41, 0.42), (0.50, 0.51, 0.53), "does not hold"),
        ((0.40, 0.50, 0.60), (0.35, 0.47, 0.58), "within the noise"),
        ((0.20, 0.50, 0.80), (0.15, 0.46, 0.74), "holds"),  # the seeds differ more than the rows
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), "within the noise"),  # all diverged
        ((0.3, 0.3, 0.3), (0.0, 0.0, 0.0), "holds"),
    ],
)
def test_verdicts(above, below, verdict):
    by_seed = dict(enumerate(above)), dict(reversed(list(enumerate(below))))
    word, difference, noise = report.compare(*by_seed)
    assert word == verdict
    assert difference == pytest.approx(sum(above) / 3 - sum(below) / 3)
    differences = [a - b for a, b in zip(above, below, strict=True)]
    assert noise == pytest.approx(slow_noise(differences), rel=2e-3, abs=1e-9)


def test_only_common_seeds_are_compared():
    assert report.compare({0: 0.5, 1: 0.9}, {0: 0.4, 2: 0.3}) == (
        "as published, but one seed shows no noise",
        pytest.approx(0.1),
        None,
    )
    assert report.compare({0: 0.1}, {0: 0.4})[0].startswith("not as published")
    assert report.compare({0: 0.1}, {1: 0.4}) is None


def train_record(step, norm, change, classification=5.0):
    fields = {"loss": 1.0, "loss_classification": classification}
    fields |= {"gradient_norm": norm, "gradient_fluctuation": change}
    return {"kind": "train", "step": step, **fields}


def eval_record(step, score):
    figures = {"mAP": score / 4, "AP50": score, "APs": score / 2}
    return {"kind": "eval", "step": step, **figures, "AP": {"cat": score / 8}}


def write(workdir, records):
    workdir.mkdir(exist_ok=True)
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def test_outcomes_are_read_from_the_metrics(tmp_path):
    trained = [train_record(step, 2.0 * step, 1.0) for step in range(1, 5)]
    evaluation = eval_record(4, 0.4)
    assert report.read_outcome(tmp_path, 4) is None  # not started
    write(tmp_path, [])
    assert report.read_outcome(tmp_path, 4) is None
    write(tmp_path, trained)
    assert report.read_outcome(tmp_path, 4) is None  # not evaluated
    write(tmp_path, [*trained, evaluation])
    outcome = report.read_outcome(tmp_path, 4)
    figures = {"mAP": 0.1, "AP50": 0.4, "APs": 0.2}
    assert outcome == report.Outcome(figures, {"cat": 0.05}, None, None, 7.0, 1 / 7)
    assert [outcome.score(name) for name in ("APs", "cat")] == [0.2, 0.05]
    assert report.read_outcome(tmp_path, 8) is None  # that was not the end
    write(tmp_path, [*trained[:2], {"kind": "diverged", "step": 3, "quantity": "loss"}])
    outcome = report.read_outcome(tmp_path, 4)
    assert outcome == report.Outcome({}, {}, 3, None, None, None)
    assert outcome.score("AP50") == 0


@pytest.mark.parametrize("left", [0, 30, 47, None])
def test_the_plateau_is_left_when_twenty_updates_are_below_it(tmp_path, left):
    losses = [3.0 if left is not None and step > left else 4.0 for step in range(1, 51)]
    write(
        tmp_path,
        [
            *(train_record(i, 1.0, 0.0, loss) for i, loss in enumerate(losses, 1)),
            eval_record(50, 0),
        ],
    )
    means = {step: sum(losses[step - 20 : step]) / 20 for step in range(20, 51)}
    expected = next((step for step, mean in means.items() if mean < 3.8), None)
    assert report.read_outcome(tmp_path, 50, plateau=3.8).left_plateau_at == expected
    assert (expected is None) == (left in (47, None))


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
        write(workdir, [*records, eval_record(steps, score)])


@pytest.fixture
def trainer(monkeypatch):
    made = Trainer()
    monkeypatch.setattr(thesis, "train_and_evaluate", made)
    return made


def test_all_runs_are_trained_once_and_reported(tmp_path, trainer, capsys, monkeypatch):
    drawn = []
    draw = report.draw
    monkeypatch.setattr(report, "draw", lambda *args: drawn.append(args))
    command = [f"--output={tmp_path / 'out'}", f"--images={IMAGES}", "--seeds", "0", "1"]
    assert exit_status(thesis.main, *command) == 0
    assert len(trainer.trained) == len(set(trainer.trained)) == 18
    assert len(drawn) == 18  # a stopped experiment has a report of its finished runs
    shown = capsys.readouterr().out
    text = (tmp_path / "out" / "table.md").read_text()
    assert text in shown
    rows = {tuple(line.split(" | ")[:2]): line for line in text.splitlines()}
    assert "0.405 ± 0.007" in rows[("| BN in both", f"{shapes_row('both').rate:g}")]
    assert "0.000 ± 0.000 (diverged: 2 of 2, at step 1, 1)" in rows[("| no BN", "0.05")]
    assert rows[("| 7×7, stride 2", "0.05")].endswith("| 73.1 | –, – |")
    assert rows[("| no BN", "0.05")].endswith("| – | – | – | –, – |")
    assert "| BN in both above no BN | AP50 | 78.7 > 67.6 | +0.100 | ±0.000 | holds |" in text
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    values = [run["figures"]["AP50"] for run in results["rows"]["both"]["seeds"].values()]
    assert statistics.fmean(values) == pytest.approx(0.405)

    # Again: nothing is left to do. Only a lost run is trained again.
    assert exit_status(thesis.main, *command) == 0
    assert len(trainer.trained) == 18
    (tmp_path / "out" / "both_seed1" / "metrics.jsonl").unlink()
    assert exit_status(thesis.main, *command) == 0
    assert trainer.trained[18:] == ["both_seed1"]
    draw(*drawn[-1])
    picture = cv2.imread(str(tmp_path / "out" / "figure.png"))
    assert picture.shape[1] > 1000 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_photos_have_a_column_for_each_class(tmp_path, trainer):
    command = [f"--output={tmp_path}", "--photos=BCCD", f"--images={IMAGES}", "--quick"]
    assert exit_status(thesis.main, *command) == 0
    assert trainer.trained == [f"{key}_seed0" for key in plan.NORMS]
    text = (tmp_path / "table.md").read_text()
    assert "| rate | mAP | cat | gradient norm |" in text and "plateau" not in text
    assert "| BN in both above no BN | mAP | 78.7 > 67.6 | +0.025 | – | as published" in text
    assert cv2.imread(str(tmp_path / "figure.png")) is not None


def test_an_experiment_that_only_diverged_has_a_report(tmp_path):
    diverged = report.Outcome({}, {}, 3, None, None, None)
    write(tmp_path / "none_seed0", [{"kind": "diverged", "step": 3, "quantity": "loss"}])
    text = report.write_report(PHOTOS, {"none": {0: diverged}}, IMAGES, tmp_path)
    assert "| no BN | 0.001 | 0.000 (diverged: 1 of 1, at step 3) | – | – | 67.6 |" in text
    assert cv2.imread(str(tmp_path / "figure.png")) is not None


def test_candidates_are_compared_with_a_seed_of_their_own(tmp_path, trainer, capsys):
    assert exit_status(thesis.main, f"--output={tmp_path}", "--choose", f"--images={IMAGES}") == 0
    expected = [f"{row.key}_seed{plan.CHOICE_SEED}" for row in SHAPES.candidates]
    assert trainer.trained == expected
    shown = capsys.readouterr().out
    assert "| no BN | 0.003 | 1.300 |" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["choice"]


def test_a_folder_of_another_experiment_is_refused(tmp_path, trainer):
    row = shapes_row("both")
    runs = thesis.Runs(SHAPES, IMAGES, tmp_path)
    thesis.train_row(runs, row, 0)
    elsewhere = runs._replace(study=plan.shapes_study("elsewhere"))
    thesis.train_row(elsewhere, row, 0)  # the data folder does not matter
    record = plan.run_folder(tmp_path, row.key, 0) / "run.json"
    fields = json.loads(record.read_text())
    del fields["anchors.rounded"]  # a run older than this field
    record.write_text(json.dumps(fields))
    thesis.train_row(runs, row, 0)
    with pytest.raises(UserError, match=r"holds a run with config.train_images = 160, not 320"):
        thesis.train_row(runs._replace(images=320), row, 0)
    assert len(trainer.trained) == 1


def test_failures_other_than_divergence_are_reported(tmp_path, trainer, capsys):
    trainer.fail = UserError("the disk is full")
    assert exit_status(thesis.main, "--quick", f"--output={tmp_path}") == 1
    assert "error: the disk is full" in capsys.readouterr().err
    trainer.fail = KeyboardInterrupt()
    assert exit_status(thesis.main, "--quick", f"--output={tmp_path}") == 130
    assert "stopped by Ctrl-C" in capsys.readouterr().err
