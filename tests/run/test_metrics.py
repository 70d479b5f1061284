"""metrics.jsonl: one line per step, one step late, truncated on resume, stopped by NaN."""

import json

import jax.numpy as jnp
import pytest

from scratchdet_jax.errors import UserError
from scratchdet_jax.mirror import Mirror
from scratchdet_jax.run import metrics as metrics_module
from scratchdet_jax.run.metrics import MetricLogger


def logger(workdir, start=0, every=1):
    return MetricLogger(
        Mirror(workdir), start_step=start, num_steps=100, batch_size=4, log_every=every
    )


def metrics(loss: float) -> dict:
    return {"loss": jnp.float32(loss), "learning_rate": jnp.float32(0.1)}


def lines(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_each_step_is_written_after_the_next_one_has_started(tmp_path):
    log = logger(tmp_path)
    log.log_step(1, metrics(3.0))
    assert lines(tmp_path) == []
    log.log_step(2, metrics(2.0))
    assert [line["step"] for line in lines(tmp_path)] == [1]
    log.flush()
    log.close()
    assert [(line["kind"], line["step"], line["loss"]) for line in lines(tmp_path)] == [
        ("train", 1, 3.0),
        ("train", 2, 2.0),
    ]
    assert lines(tmp_path)[1]["images_per_second"] > 0
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_waiting_for_the_loader_and_memory_are_written(tmp_path, monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 4.0, 5.0, 10.0, 10.0, 20.0])
    monkeypatch.setattr(metrics_module.time, "perf_counter", lambda: next(clock))
    log = logger(tmp_path, every=2)  # at 0
    for step in (1, 2):
        with log.waiting():  # from 1 to 4, from 4 to 5
            pass
        log.log_step(step, metrics(1.0))
    log.flush()  # at 10
    with log.waiting():
        pass
    (line,) = lines(tmp_path)
    assert line["loader_wait"] == 0.4
    assert line["host_memory"] > 10 * 2**20
    assert set(metrics_module.MEASURED) >= set(line) - {"kind", "step", "loss", "learning_rate"}


def test_only_every_nth_step_is_written_but_all_are_checked(tmp_path):
    log = logger(tmp_path, every=5)
    for step in range(1, 12):
        log.log_step(step, metrics(1.0))
    log.flush()
    assert [line["step"] for line in lines(tmp_path)] == [5, 10]
    log.log_step(12, metrics(float("nan")))
    with pytest.raises(UserError, match=r"loss is nan at step 12 .*learning_rate"):
        log.flush()


def test_resuming_drops_the_lines_of_the_lost_steps(tmp_path):
    log = logger(tmp_path)
    for step in range(1, 7):
        log.log_step(step, metrics(step))
    log.flush()
    log.log_evaluation(6, {"mAP": 0.5, "AP": {"a": 0.5, "b": None}})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # truncated by the kill
    log = logger(tmp_path, start=4)
    log.log_step(5, metrics(50))
    log.flush()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 4),
        (5, 50),
    ]
