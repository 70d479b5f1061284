"""Small complete runs on the embedded data set, to compare resumed ones with uninterrupted ones."""

import functools
import json

import jax
import numpy as np

from scratchdet_jax.datasets import shapes
from scratchdet_jax.models.ssd import BACKBONES
from scratchdet_jax.parallel.devices import DeviceMapping
from scratchdet_jax.run.metrics import MEASURED, MetricLogger
from scratchdet_jax.training import loop
from tests.plain import FIELDS, PLAIN
from tests.tiny import tiny_config


def small_config(folder, monkeypatch, **overrides):
    """Four updates of 8 of 24 images on two devices, evaluated after every second on 8 images.

    Data and compiled programs are in `folder`.
    """
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"train": 24, "validation": 8})
    monkeypatch.setitem(BACKBONES, "plain", PLAIN)
    two = functools.partial(DeviceMapping, devices=jax.devices()[:2])
    monkeypatch.setattr(loop, "DeviceMapping", two)
    fields = {
        "num_steps": 4,
        "batch_size": 8,
        "checkpoint_every": 1,
        "data.dir": str(folder / "data"),
        "data.max_boxes": 16,
        "data.threads": 1,
        "eval.every_steps": 2,
        "compilation_cache": str(folder / "cache"),
    }
    return tiny_config(**FIELDS | fields | overrides)


def train(config, workdir):
    """The final state of a run, in NumPy."""
    return jax.device_get(loop.train_and_evaluate(config, workdir))


def train_in_parts(config, workdir, monkeypatch, *stops):
    """The final state of a run that is killed while each of the steps `stops` is running."""

    class Killed(BaseException):
        pass

    for stop in stops:
        with monkeypatch.context() as patch:
            log_step = MetricLogger.log_step

            def kill(self, step, metrics, stop=stop, log_step=log_step):
                if step == stop:
                    raise Killed
                log_step(self, step, metrics)

            patch.setattr(MetricLogger, "log_step", kill)
            try:
                loop.train_and_evaluate(config, workdir)
            except Killed:
                continue
            raise AssertionError(f"step {stop} was not reached")
    return train(config, workdir)


def lines(workdir, kind="") -> list[dict]:
    """The log without the speed, only the lines of one kind if it is given."""
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [
        {name: value for name, value in record.items() if name not in MEASURED}
        for record in records
        if record["kind"] == (kind or record["kind"])
    ]


def assert_same_run(found, expected):
    """Compares two (state, workdir): every array, and every line of the logs."""
    assert jax.tree.structure(found[0]) == jax.tree.structure(expected[0])
    jax.tree.map(np.testing.assert_array_equal, found[0], expected[0])
    assert lines(found[1]) == lines(expected[1])
