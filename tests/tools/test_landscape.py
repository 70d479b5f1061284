"""The walk along the gradient, on a quadratic with known figures and on a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scratchdet_jax.datasets import shapes
from scratchdet_jax.detector import build_detector
from scratchdet_jax.run.checkpoints import Checkpoints, RunInfo
from scratchdet_jax.run.state import TrainState
from scratchdet_jax.tools import landscape
from tests.command import exit_status
from tests.tiny import tiny_config

SIZES = (0.01, 0.1, 1.0)


def quadratic(curvatures):
    """½ Σ c·(x − target)²: its gradient is c·(x − target)."""

    def loss(params, target):
        flat = jnp.concatenate([params["a"], params["b"]])
        return 0.5 * jnp.sum(curvatures * (flat - target) ** 2)

    return jax.value_and_grad(loss)


def test_walk_on_a_quadratic():
    curvatures = np.float32([4.0, 1.0, 0.5])
    target = np.float32([0.0, 1.0, -1.0])
    start = np.float32([1.0, 2.0, 3.0])
    walk = landscape.make_walk(quadratic(curvatures))
    met = walk({"a": jnp.array(start[:1]), "b": jnp.array(start[1:])}, target, SIZES)

    gradient = curvatures * (start - target)
    norm = np.linalg.norm(gradient)
    np.testing.assert_allclose(
        met.loss, 0.5 * np.sum(curvatures * (start - target) ** 2), rtol=1e-6
    )
    np.testing.assert_allclose(met.gradient_norm, norm, rtol=1e-6)
    for i, size in enumerate(SIZES):
        there = start - size * gradient
        loss = 0.5 * np.sum(curvatures * (there - target) ** 2)
        change = np.linalg.norm(curvatures * (there - target) - gradient)
        np.testing.assert_allclose(met.losses[i], loss, rtol=1e-5)
        np.testing.assert_allclose(met.gradient_changes[i], change, rtol=1e-3)
        np.testing.assert_allclose(met.smoothness[i], change / (size * norm), rtol=1e-3)
    # The smoothness of a quadratic is at most its largest curvature.
    assert met.smoothness.max() <= 4.0 * 1.001


def test_overflow_is_reported():
    walk = landscape.make_walk(quadratic(np.float32([1e30, 1, 1])))
    met = walk({"a": jnp.ones(1), "b": jnp.ones(2)}, np.zeros(3, np.float32), (1.0,))
    assert not np.isfinite(met.losses[0])
    run = landscape.SavedRun("x", 3, None)
    summary = landscape.summarize(run, [met], (1.0,))
    assert summary["steps"][0]["loss_change"] is None
    assert "not finite" in landscape.text(summary)
    json.dumps(summary, allow_nan=False)


def initial(path, shape):
    """He's weights, ones for scales and variances, zeros: compiled initialisers are far slower."""
    name = path[-1].key
    if name == "kernel":
        deviation = np.sqrt(2 / np.prod(shape.shape[:-1]))
        return np.random.default_rng(0).normal(0, deviation, shape.shape).astype(np.float32)
    return np.full(shape.shape, float(name in ("scale", "var")), np.float32)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of a tiny detector on a few embedded scenes, stopped at its start."""
    folder = tmp_path_factory.mktemp("landscape")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "SPLIT_SIZES", {"train": 24, "validation": 2})
        shapes.prepare_shapes(folder / "data")
    config = tiny_config(
        **{
            "batch_size": 8,
            "data.dir": str(folder / "data"),
            "data.canvas": (128, 128),
            "data.max_boxes": 16,
            "data.threads": 2,
        }
    )
    model = build_detector(config, shapes.CLASS_NAMES).model
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)
    )
    variables = jax.tree_util.tree_map_with_path(initial, variables)
    state = TrainState(jnp.int32(2), variables["params"], variables["batch_stats"], ())
    checkpoints = Checkpoints(folder / "run")
    checkpoints.save(2, state, RunInfo(config, shapes.CLASS_NAMES), None)
    checkpoints.close()
    return folder / "run"


@pytest.mark.slow  # compiles twice
def test_a_run_is_measured_and_written(workdir, tmp_path, capsys):
    output = tmp_path / "new" / "landscape.json"
    command = [str(workdir), "--batches=2", f"--output={output}"]
    assert exit_status(landscape.main, *command, "--step_sizes", "0.000001", "0.01") == 0
    (summary,) = json.loads(output.read_text())
    assert (summary["step"], summary["batches"]) == (2, 2)
    near, far = summary["steps"]
    # Close by, the loss falls by η‖g‖².
    assert near["loss_change"] == pytest.approx(-1e-6 * summary["gradient_norm"] ** 2, rel=0.3)
    assert near["relative_gradient_change"] < far["relative_gradient_change"]
    assert (
        summary["beta_smoothness"] >= max(step["smoothness"] for step in summary["steps"]) * 0.999
    )
    shown = capsys.readouterr().out
    assert "β-smoothness" in shown and str(workdir) in shown


def test_mistakes_are_reported(workdir, tmp_path, capsys):
    for command, message in (
        ([str(tmp_path / "nowhere")], "there is no run in"),
        ([str(workdir), "--checkpoint=7"], "there is no checkpoint '7'"),
        ([str(workdir), "--step_sizes", "-1"], "must be above 0"),
    ):
        assert exit_status(landscape.main, *command) == 1
        assert message in capsys.readouterr().err
