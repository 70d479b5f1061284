"""Replaying a step: a number that is not finite is traced to its layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scratchdet_jax.detector import build_detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.run.checkpoints import RunInfo
from scratchdet_jax.run.state import TrainState
from scratchdet_jax.tools import replay as tool
from scratchdet_jax.tools.replay import Replay, load_replay
from scratchdet_jax.training.optimizer import make_optimizer
from tests.command import exit_status
from tests.tiny import random_batch, random_variables, tiny_config


def test_a_workdir_without_a_saved_step_is_refused(tmp_path, capsys):
    with pytest.raises(UserError, match="no training diverged there"):
        load_replay(tmp_path)
    assert exit_status(tool.main, f"--workdir={tmp_path}") == 1
    assert "no training diverged there" in capsys.readouterr().err
    (tmp_path / "replay").mkdir()
    (tmp_path / "replay/step_3.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"step_3\.npz cannot be read"):
        load_replay(tmp_path)


@pytest.mark.slow
def test_the_first_layer_that_is_not_finite_is_named():
    config = tiny_config(batch_size=4)
    info = RunInfo(config, ("a", "b", "c"))
    detector = build_detector(config, info.class_names)
    variables = random_variables(detector.model, 64, np.random.default_rng(0))
    kernel = variables["params"].get("stage3")
    assert kernel is not None, sorted(variables["params"])
    spoiled = jax.tree.leaves(kernel)[0]
    spoiled.flat[0] = np.inf
    state = TrainState(
        jnp.int32(4),
        variables["params"],
        variables["batch_stats"],
        make_optimizer(config).init(variables["params"]),
    )
    batch = random_batch(config, 0)
    ids = tuple(f"image{i}" for i in range(4))
    report = tool.describe(Replay(5, "loss", info, ids, batch, state))
    assert "  parameters: not finite in 1 array\n" in report
    assert "  optimizer: finite" in report
    assert "  images: finite" in report
    assert "first activation that is not finite: stage3" in report
    assert "loss, classification: sum nan" in report
    assert "image0" in report
