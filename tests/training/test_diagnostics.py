"""Gradient norms, in total and by part, and their fluctuation in the log."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scratchdet_jax.detector import build_detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.mirror import Mirror
from scratchdet_jax.models.parts import PARTS, part_of
from scratchdet_jax.run.metrics import MetricLogger
from scratchdet_jax.training.step import gradient_norms
from tests.tiny import tiny_config


def slow_norms(gradients) -> dict[str, float]:
    """Sums the squares in a loop over all numbers."""
    squares = dict.fromkeys(PARTS, 0.0)
    for path, array in jax.tree_util.tree_leaves_with_path(gradients):
        name = path[0].key
        part = "head" if name == "head" else "extras" if "extra" in name else "backbone"
        for value in np.ravel(array).astype(np.float64):
            squares[part] += value * value
    norms = {f"gradient_norm_{part}": square**0.5 for part, square in squares.items()}
    return norms | {"gradient_norm": sum(squares.values()) ** 0.5}


@pytest.fixture(scope="module")
def gradients():
    """Random arrays with the shapes of a tiny detector's parameters."""
    config = tiny_config()
    model = build_detector(config, ("a", "b")).model
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)
    )["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


def test_norms_by_part_agree_with_the_loop(gradients):
    measured = jax.jit(gradient_norms)(gradients)
    expected = slow_norms(gradients)
    assert set(measured) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(measured[name], value, rtol=1e-5)


def test_a_part_without_parameters_has_norm_0():
    norms = gradient_norms({"head": {"kernel": jnp.array([3.0, 4.0])}, "root": {}})
    assert {name: float(value) for name, value in norms.items()} == {
        "gradient_norm": 5,
        "gradient_norm_head": 5,
        "gradient_norm_extras": 0,
        "gradient_norm_backbone": 0,
    }


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("root", "backbone"),
        ("stage4", "backbone"),
        ("source3_norm", "backbone"),
        ("conv4_3", "backbone"),
        ("extra1", "extras"),
        ("extra5", "extras"),
        ("head", "head"),
    ],
)
def test_parts_by_name(name, part):
    assert part_of(name) == part


NORMS = [4.0, 7.0, 1.0, 2.0, 2.5, 0.5, 9.0]


def log(workdir, norms, start=0, every=1, progress=None):
    """Logs these steps; returns what a checkpoint keeps of it."""
    made = MetricLogger(
        Mirror(workdir),
        start_step=start,
        num_steps=100,
        batch_size=4,
        log_every=every,
        progress=progress,
    )
    for step, norm in enumerate(norms, start + 1):
        fields = {"loss": 1.0, "learning_rate": 0.1, "gradient_norm": norm}
        made.log_step(step, {name: jnp.float32(value) for name, value in fields.items()})
    try:
        made.flush()
        return made.progress()
    finally:
        made.close()


def read(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_fluctuation_covers_every_step_for_any_log_interval(tmp_path, every):
    log(tmp_path, NORMS, every=every)
    changes = {t + 1: abs(NORMS[t] - NORMS[t - 1]) for t in range(1, len(NORMS))}
    for line in read(tmp_path):
        covered = [changes[t] for t in range(line["step"] - every + 1, line["step"] + 1) if t > 1]
        if covered:
            np.testing.assert_allclose(line["gradient_fluctuation"], np.mean(covered), rtol=1e-6)
        else:
            assert "gradient_fluctuation" not in line


def test_fluctuation_continues_when_a_run_is_resumed(tmp_path):
    for name in ("uninterrupted", "resumed"):
        (tmp_path / name).mkdir()
    log(tmp_path / "uninterrupted", NORMS)
    progress = log(tmp_path / "resumed", NORMS[:4])
    log(tmp_path / "resumed", NORMS[4:5], start=4, progress=progress)  # lost
    log(tmp_path / "resumed", NORMS[4:], start=4, progress=progress)

    def figures(workdir):
        return [(line["step"], line.get("gradient_fluctuation")) for line in read(workdir)]

    assert figures(tmp_path / "resumed") == figures(tmp_path / "uninterrupted")


def test_divergence_is_recorded_and_removed_when_the_run_is_resumed(tmp_path):
    with pytest.raises(UserError, match="gradient_norm is inf at step 4"):
        log(tmp_path, [*NORMS[:3], np.inf])
    assert read(tmp_path)[-1] == {
        "kind": "diverged",
        "step": 4,
        "quantity": "gradient_norm",
        "value": "inf",
    }
    log(tmp_path, NORMS[2:4], start=2)
    assert [line["kind"] for line in read(tmp_path)] == ["train"] * 4
