"""The complete program on a small VOC folder: train, stop, resume, evaluate, draw.

`make test` runs it with the least network on two devices, `make test-slow` with a ResNet on eight.
"""

import functools
import json
import resource
import signal

import cv2
import jax
import numpy as np
import pytest

from scratchdet_jax import stopping
from scratchdet_jax.buckets import gcs, lease
from scratchdet_jax.data.sources import open_split
from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation.formats import split_name
from scratchdet_jax.mirror import Mirror
from scratchdet_jax.parallel.devices import DeviceMapping
from scratchdet_jax.paths import run_path
from scratchdet_jax.reports.results import evaluate_run
from scratchdet_jax.run.metrics import MEASURED, MetricLogger
from scratchdet_jax.run.open import open_run
from scratchdet_jax.run.replay import batch_of_step
from scratchdet_jax.stopping import Stop, Stopped
from scratchdet_jax.tools.predict import __main__ as predict
from scratchdet_jax.tools.replay import load_replay
from scratchdet_jax.training import loop
from tests.plain import FIELDS, plain_backbone
from tests.tiny import tiny_config

COLORS = {"blue": (255, 60, 60), "green": (60, 255, 60)}  # BGR

ANNOTATION = """<annotation><filename>{name}.png</filename>
<size><width>64</width><height>48</height><depth>3</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>{label}</name><difficult>{difficult}</difficult><bndbox>
<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A VOC folder with 20 training and 9 evaluation images: coloured boxes on noise."""
    root = tmp_path_factory.mktemp("voc")
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 9)):
        names = [f"{split}{i:03d}" for i in range(count)]
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(names) + "\n")
        for i, name in enumerate(names):
            image = rng.integers(0, 90, (48, 64, 3), np.uint8)
            objects = ""
            for k in range(i % 3):  # some images have no objects
                label = sorted(COLORS)[rng.integers(2)]
                x0, y0 = rng.integers(1, 30), rng.integers(1, 20)
                x1, y1 = x0 + rng.integers(16, 30), y0 + rng.integers(14, 26)
                cv2.rectangle(image, (int(x0), int(y0)), (int(x1), int(y1)), COLORS[label], -1)
                objects += OBJECT.format(
                    label=label, x0=x0, y0=y0, x1=x1, y1=y1, difficult=int(k == 1)
                )
            cv2.imwrite(str(root / f"JPEGImages/{name}.png"), image)
            xml = ANNOTATION.format(name=name, objects=objects)
            (root / f"Annotations/{name}.xml").write_text(xml)
    return root


@pytest.fixture(scope="module", params=["plain", pytest.param("resnet", marks=pytest.mark.slow)])
def network(request):
    """The fields of a config with one of the networks, which is known during the tests."""
    if request.param == "resnet":
        yield {}
        return
    two = functools.partial(DeviceMapping, devices=jax.devices()[:2])
    with plain_backbone(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "DeviceMapping", two)
        yield FIELDS


@pytest.fixture(scope="module")
def config(network, folder, tmp_path_factory):
    return tiny_config(
        **network
        | {
            "name": "tiny",
            "batch_size": 8,
            "num_steps": 9,
            "checkpoint_every": 4,
            "data.folder": str(folder),
            "data.dir": str(tmp_path_factory.mktemp("data")),
            "data.train": "train",
            "data.eval": "val",
            "data.threads": 2,
            "eval.every_steps": 4,
            "compilation_cache": str(
                tmp_path_factory.mktemp("cache")
            ),  # all runs share one compiled program
        }
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """The workdir and final state of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    return workdir, jax.device_get(loop.train_and_evaluate(config, workdir))


def lines(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_stopped_and_resumed_run_ends_with_identical_parameters(
    config, finished, tmp_path, monkeypatch
):
    def stop():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        at_step(patch, {7: stop})
        with pytest.raises(KeyboardInterrupt):
            loop.train_and_evaluate(config, tmp_path)
    resumed = jax.device_get(loop.train_and_evaluate(config, tmp_path))
    assert_same_end(resumed, tmp_path, finished)


def assert_same_end(state, workdir, finished):
    """Checks that state and log are identical to those of the uninterrupted run."""
    jax.tree.map(np.testing.assert_array_equal, state, finished[1])

    def figures(workdir):
        return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines(workdir)]

    assert figures(workdir) == figures(finished[0])


def at_step(monkeypatch, actions):
    """Calls `actions[step]()` after a step has been started."""
    log_step = MetricLogger.log_step

    def act(self, step, metrics):
        actions.get(step, lambda: None)()
        log_step(self, step, metrics)

    monkeypatch.setattr(MetricLogger, "log_step", act)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_signal_saves_the_current_step_and_nothing_is_lost(
    config, finished, tmp_path, monkeypatch, capsys, number, status
):
    with monkeypatch.context() as patch:
        patch.setattr(stopping, "_command", Stop())
        at_step(patch, {6: lambda: stopping.of_command().ask(number)})
        with pytest.raises(Stopped) as stopped:
            loop.train_and_evaluate(config, tmp_path)
    assert stopped.value.code == status
    assert "after step 6; saved up to step 6: run the same command" in capsys.readouterr().err
    state = jax.device_get(loop.train_and_evaluate(config, tmp_path))
    assert "resumed from step 6 of 9" in capsys.readouterr().out
    assert_same_end(state, tmp_path, finished)


def test_a_full_disk_damages_no_checkpoint_and_ends_with_an_error(
    config, finished, tmp_path, monkeypatch, capsys
):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    small = (16_000, hard)  # as on a full disk, no weights can be written
    try:
        at_step(monkeypatch, {5: lambda: resource.setrlimit(resource.RLIMIT_FSIZE, small)})
        with pytest.raises(
            UserError, match=r"last checkpoint could not be written .* free disk space"
        ):
            loop.train_and_evaluate(config, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    monkeypatch.undo()
    told = capsys.readouterr().err
    for step in (8, 9):
        assert f"the checkpoint of step {step} could not be written" in told
    assert "and training continues" in told
    state = jax.device_get(loop.train_and_evaluate(config, tmp_path))
    assert "resumed from step 4 of 9" in capsys.readouterr().out
    assert_same_end(state, tmp_path, finished)


def test_a_run_in_a_bucket_equals_one_on_a_disk(config, finished, bucket, storage, monkeypatch):
    workdir = run_path(f"{bucket}/run")
    state = jax.device_get(loop.train_and_evaluate(config, workdir))
    assert_same_end(state, storage.path(str(workdir)), finished)
    names = {path.name.partition(".")[0] for path in workdir.iterdir()}
    assert names == {"checkpoints", "events", "metrics"}  # the lock was given back


def test_a_run_in_a_bucket_is_killed_on_a_bad_network_and_resumes(
    config, finished, bucket, storage, monkeypatch, capsys
):
    class Killed(BaseException):
        """Ends the run; what it holds in memory is lost."""

    def kill():
        storage.network.go_away(3600)
        raise Killed

    workdir = run_path(f"{bucket}/run")
    with monkeypatch.context() as patch:
        patch.setattr(gcs, "PATIENCE", 0.1)
        patch.setattr(lease, "EXPIRES", 1.0)
        patch.setattr(Mirror, "close", lambda self: None)
        at_step(patch, {7: kill})
        with pytest.raises(Killed):
            loop.train_and_evaluate(config, workdir)
    storage.network.away_until, storage.network.share = 0.0, 0.1
    with monkeypatch.context() as patch:
        patch.setattr(lease, "EXPIRES", 1.0)
        state = jax.device_get(loop.train_and_evaluate(config, workdir))
    storage.network.share = 0.0
    told = capsys.readouterr()
    assert "is locked by another run (process " in told.err
    assert "resumed from step 4 of 9" in told.out
    assert_same_end(state, storage.path(str(workdir)), finished)
    assert sum(storage.network.faults.values()) > 3


def test_metrics_are_written_for_each_step_and_evaluation(finished):
    workdir, state = finished
    assert int(state.step) == 9
    written = lines(workdir)
    assert [line["step"] for line in written if line["kind"] == "train"] == list(range(1, 10))
    assert [line["step"] for line in written if line["kind"] == "eval"] == [4, 8, 9]
    train = next(line for line in written if line["kind"] == "train")
    assert set(train) == {
        "kind",
        "step",
        "loss",
        "loss_classification",
        "loss_localization",
        "positives",
        "learning_rate",
        "gradient_norm",
        "gradient_norm_backbone",
        "gradient_norm_extras",
        "gradient_norm_head",
        "images_per_second",
        "loader_wait",
        "host_memory",
    }
    evaluation = next(line for line in written if line["kind"] == "eval")
    assert set(evaluation["AP"]) == set(COLORS)
    assert 0 <= evaluation["mAP@.5:.95"] <= evaluation["mAP"] <= 1


def test_evaluating_a_run_gives_the_scores_of_training_and_writes_detections(
    config, finished, tmp_path
):
    workdir, _ = finished
    run = open_run(workdir, "latest")
    assert run.info.class_names == ("blue", "green")
    evaluation = evaluate_run(run, run.info.config, tmp_path)
    during = [line for line in lines(workdir) if line["kind"] == "eval"][-1]
    assert evaluation.results["mAP"] == during["mAP"]
    assert evaluation.results["mAP@.5:.95"] == during["mAP@.5:.95"]
    assert len(evaluation.detections) == 9
    assert json.loads((tmp_path / "results.json").read_text())["mAP"] == during["mAP"]
    for name in COLORS:
        text = (tmp_path / f"comp4_det_val_{name}.txt").read_text().splitlines()
        assert all(len(line.split()) == 6 for line in text)
    results = json.loads((tmp_path / "coco_results.json").read_text())
    detected = sum(len(d.labels) for d in evaluation.detections.values())
    assert len(results) == detected > 0


def test_detections_are_in_pixels_of_the_file(finished, tmp_path):
    workdir, _ = finished
    run = open_run(workdir, "latest")
    evaluation = evaluate_run(run, run.info.config, tmp_path)
    boxes = np.concatenate([d.boxes_pixels for d in evaluation.detections.values()])
    assert boxes.min() >= 0
    assert (boxes[:, [0, 2]] <= 48).all()
    assert (boxes[:, [1, 3]] <= 64).all()
    assert boxes[:, 3].max() > 50  # not scaled to the height


def test_a_set_of_one_split_trains_without_evaluation_and_says_so(config, tmp_path, capsys):
    settings = config.copy_and_resolve_references().unlock()
    settings.data.eval = ""
    settings.num_steps = 2
    loop.train_and_evaluate(settings.lock(), tmp_path)
    printed = capsys.readouterr().out
    assert printed.count("no evaluation: config.data.eval= is empty") == 1
    assert "--val=0.2" in printed
    assert not any("mAP" in line for line in lines(tmp_path))


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_run_that_diverges_stops_and_names_the_step(config, tmp_path, place, request):
    workdir = tmp_path
    if place == "bucket":
        workdir = run_path(f"{request.getfixturevalue('bucket')}/run")
    wild = config.copy_and_resolve_references().unlock()
    wild.optimizer.learning_rate = 1e12
    wild.optimizer.warmup_steps = 0
    wild.model.norm = wild.model.head_norm = "none"
    with pytest.raises(UserError, match=r"training diverged: \w+ is (nan|inf) at step \d+") as end:
        loop.train_and_evaluate(wild.lock(), workdir)

    # The saved step has its batch, its image ids and the state before it, which is finite.
    replay = load_replay(workdir)
    assert f"at step {replay.step} " in str(end.value)
    assert f"The batch ({', '.join(replay.image_ids)})" in str(end.value)
    expected = batch_of_step(config, open_split(config.data, "train"), replay.step)
    jax.tree.map(np.testing.assert_array_equal, replay.batch, expected)
    assert int(replay.state.step) == replay.step - 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(replay.state))
    with pytest.raises(UserError, match=rf"has no step 99; it has {replay.step}"):
        load_replay(workdir, 99)


@pytest.mark.parametrize(
    ("field", "value"), [("model.width", 0.25), ("anchors.min_percent", None), ("seed", 5)]
)
def test_another_run_in_the_same_workdir_is_refused(config, finished, field, value):
    workdir, _ = finished
    other = config.copy_and_resolve_references().unlock()
    if value is None:
        value = tuple(percent - 1 for percent in config.anchors.min_percent)
    other.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=rf"another config \(config\.{field}: was "):
        loop.train_and_evaluate(other.lock(), workdir)


def test_evaluating_with_other_anchors_is_refused(config, finished, tmp_path):
    run = open_run(finished[0], "latest")
    other = config.copy_and_resolve_references().unlock()
    other.anchors.min_percent = (8, 18, 32, 48, 64, 80)
    with pytest.raises(UserError, match=r"config\.anchors\.min_percent .* was trained with"):
        evaluate_run(run, other.lock(), tmp_path)


def test_a_workdir_that_cannot_be_written_is_named(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--workdir .*file cannot be written"):
        loop.train_and_evaluate(config, tmp_path / "file")


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("voc/2007:test", "test"),
        ("voc/2007:validation", "val"),
        ("voc/2007:train+validation,voc/2012:train+validation", "trainval"),
        ("voc/2007:test[:100]", "test_100"),
    ],
)
def test_detection_files_are_named_as_the_devkit_names_splits(spec, name):
    assert split_name(spec) == name


def test_predict_draws_photos_and_images_of_the_split(folder, finished, tmp_path, capsys):
    workdir, _ = finished
    photo = folder / "JPEGImages/val002.png"
    common = [f"--workdir={workdir}", "--checkpoint=latest", "--threshold=0.0"]
    predict.main(["predict", str(photo), f"--output={tmp_path / 'photo'}", *common])
    predict.main(["predict", f"--output={tmp_path / 'split'}", "--count=3", *common])
    assert cv2.imread(str(tmp_path / "photo/val002.png")) is not None
    assert len(list((tmp_path / "split").glob("*.png"))) == 4  # three pictures and the grid
    record = json.loads((tmp_path / "photo/detections.json").read_text())
    found = record["annotations"]
    # The evaluator finds the same best detection in the same image.
    run = open_run(workdir, "latest")
    evaluated = evaluate_run(run, run.info.config, tmp_path / "eval").detections["val002"]
    np.testing.assert_allclose(found[0]["score"], evaluated.scores[0], rtol=1e-4)
    ymin, xmin, ymax, xmax = evaluated.boxes_pixels[0]
    box = (xmin, ymin, xmax - xmin, ymax - ymin)
    np.testing.assert_allclose(found[0]["bbox"], box, atol=0.02)
    with pytest.raises(UserError, match="there is no image"):
        predict.main(["predict", "nowhere.jpg", f"--output={tmp_path}", *common])
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(UserError, match=r"1 file could not be used:\n.*cannot be decoded as"):
        predict.main(["predict", str(tmp_path / "text.jpg"), f"--output={tmp_path}", *common])
