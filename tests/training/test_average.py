"""The exponential moving average: against a plain loop, for both mappings, and when resumed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scratchdet_jax.detector import build_detector
from scratchdet_jax.parallel.devices import AXIS, DeviceMapping
from scratchdet_jax.run.checkpoints import Checkpoints
from scratchdet_jax.run.open import load_detector, open_run
from scratchdet_jax.run.state import AveragedState, TrainState, create_state, update_average
from scratchdet_jax.training.init_from import init_from_run
from scratchdet_jax.training.optimizer import make_optimizer
from scratchdet_jax.training.step import make_train_step, update_unless_diverged
from tests.tiny import random_batch
from tests.training.small_run import assert_same_run, small_config, train, train_in_parts

equal = np.testing.assert_array_equal


def averaged(step, value, average):
    tree = [{"params": {"w": jnp.float32(x)}, "batch_stats": {}} for x in (value, average)]
    return AveragedState(jnp.int32(step), **tree[0], opt_state=(), average=tree[1])


def test_the_average_is_a_plain_recurrence_whose_decay_rises_to_its_limit():
    values = np.random.default_rng(0).normal(size=200)
    state, slow, decays = averaged(0, 1.0, 1.0), 1.0, []
    for step, value in enumerate(values, 1):
        decays.append(min(0.9, (1 + step) / (10 + step)))
        slow = decays[-1] * slow + (1 - decays[-1]) * value
        state = update_average(averaged(step, value, state.average["params"]["w"]), 0.9)
    np.testing.assert_allclose(state.average["params"]["w"], slow, rtol=1e-5)
    assert decays[0] == 2 / 11
    assert decays[-1] == 0.9


def test_a_state_without_average_has_the_tree_of_older_checkpoints():
    state = TrainState(step=jnp.int32(3), params={"w": jnp.ones(2)}, batch_stats={}, opt_state=())
    assert update_average(state, 0.0) is state
    paths = jax.tree_util.tree_leaves_with_path(state)
    names = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in paths]
    assert names == ["step", "params/w"]


def test_an_update_that_is_not_finite_keeps_the_average():
    old = averaged(4, 1.0, 2.0)
    kept, _ = update_unless_diverged(
        old, update_average(averaged(5, np.nan, 2.0), 0.9), {"loss": 1.0}
    )
    assert kept.average["params"]["w"] == 2.0
    assert int(kept.step) == ~4


@pytest.mark.parametrize("kind", ["shard_map", pytest.param("pmap", marks=pytest.mark.slow)])
def test_a_step_on_two_devices_averages_parameters_and_statistics(kind, tmp_path, monkeypatch):
    config = small_config(tmp_path, monkeypatch, ema_decay=0.9)
    mapping = DeviceMapping(kind, jax.devices()[:2])
    detector, optimizer = build_detector(config, ("a", "b", "c"), AXIS), make_optimizer(config)
    state = create_state(detector.model, optimizer, config.image_size, 0, averaged=True)
    step = mapping.map_train_step(make_train_step(detector, optimizer))
    before = jax.device_get(state)
    jax.tree.map(equal, before.average, before.variables)
    slow, state = before.average, mapping.replicate(before)
    for number in (1, 2):
        state, _ = step(state, mapping.put_batch(random_batch(config, number)))
        decay = (1 + number) / (10 + number)
        new = jax.device_get(state.variables)
        slow = jax.tree.map(lambda a, x, d=decay: d * a + (1 - d) * x, slow, new)
    assert int(state.step) == 2
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # noqa: E731
    jax.tree.map(compare, jax.device_get(state.result), slow)


@pytest.mark.slow  # trains several runs
def test_a_run_scores_and_hands_on_its_average_and_resumes_exactly(tmp_path, monkeypatch, capsys):
    config = small_config(tmp_path, monkeypatch, ema_decay=0.99)
    whole = train(config, tmp_path / "whole")
    parts = train_in_parts(config, tmp_path / "parts", monkeypatch, 2, 4)
    assert_same_run((parts, tmp_path / "parts"), (whole, tmp_path / "whole"))

    # Loading takes the average; a new run starts from it, with its average there, too.
    run = open_run(tmp_path / "whole", "latest")
    detector, variables = load_detector(run)
    jax.tree.map(equal, variables, whole.average)
    different = [
        np.any(a != b)
        for a, b in zip(*map(jax.tree.leaves, (variables, whole.variables)), strict=True)
    ]
    assert np.mean(different) > 0.9
    moved = init_from_run(
        f"{tmp_path / 'whole'}@4", detector, jax.tree.map(np.zeros_like, variables)
    )
    started = whole.starting_from(jax.tree.map(jnp.asarray, moved))
    jax.tree.map(equal, started.average, variables)
    jax.tree.map(equal, started.variables, variables)
    pointers = {
        x.unsafe_buffer_pointer() for x in jax.tree.leaves((started.params, started.average))
    }
    assert len(pointers) == len(jax.tree.leaves((started.params, started.average)))

    checkpoints = Checkpoints(tmp_path / "whole", read_only=True)
    assert checkpoints.info(4).config.ema_decay == 0.99
