"""Checkpoints: what is kept, what is restored, and the error for a missing one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scratchdet_jax.errors import UserError
from scratchdet_jax.parallel.devices import DeviceMapping
from scratchdet_jax.run.checkpoints import Checkpoints, RunInfo
from scratchdet_jax.run.state import TrainState
from tests.tiny import tiny_config

INFO = RunInfo(tiny_config(), ("a", "b"))


def state(step: int, devices: int = 8) -> TrainState:
    arrays = {"w": jnp.arange(6.0).reshape(2, 3) + step, "b": jnp.full(3, 0.1 * step)}
    made = TrainState(
        step=jnp.int32(step),
        params=arrays,
        batch_stats={"mean": jnp.ones(3) * step},
        opt_state=(arrays, ()),
    )
    return DeviceMapping("shard_map", jax.devices()[:devices]).replicate(made)


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, score in ((10, 0.3), (20, 0.7), (30, 0.5), (40, None), (50, 0.6)):
        checkpoints.save(step, state(step), INFO, score)
    checkpoints.close()
    return tmp_path


def test_the_latest_and_the_best_are_kept(saved):
    checkpoints = Checkpoints(saved, read_only=True)
    assert sorted(int(p.name) for p in checkpoints.directory.iterdir() if p.name.isdigit()) == [
        20,
        40,
        50,
    ]
    assert checkpoints.latest_step == 50
    assert checkpoints.best_step == 20
    assert [checkpoints.find(which) for which in ("best", "latest", "40")] == [20, 50, 40]


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_a_state_comes_back_exactly_on_any_number_of_devices(saved, devices):
    like = state(0, devices)
    restored = Checkpoints(saved, read_only=True).restore(20, like)
    jax.tree.map(np.testing.assert_array_equal, restored, state(20))
    assert restored.params["w"].sharding == like.params["w"].sharding
    assert jax.tree.structure(restored) == jax.tree.structure(like)


def test_variables_come_back_without_the_optimizer(saved):
    like = {"params": state(0).params, "batch_stats": state(0).batch_stats}
    variables = Checkpoints(saved, read_only=True).restore_part(20, like)
    jax.tree.map(np.testing.assert_array_equal, variables, state(20).variables)


def test_the_recipe_comes_back(saved):
    info = Checkpoints(saved, read_only=True).info(50)
    assert info.class_names == ("a", "b")
    assert info.config.to_dict() == INFO.config.to_dict()


def test_a_missing_checkpoint_is_named(saved, tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint '30'.*best, latest, 20, 40, 50"):
        Checkpoints(saved, read_only=True).find("30")
    with pytest.raises(UserError, match="there is no run in"):
        Checkpoints(tmp_path / "nowhere", read_only=True)
