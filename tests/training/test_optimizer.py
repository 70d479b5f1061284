"""Schedule and SGD against a plain loop, and against PyTorch's SGD."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from scratchdet_jax.config.defaults import number_of_steps, run_ends
from scratchdet_jax.training.optimizer import Schedule, learning_rate, make_optimizer
from tests.tiny import tiny_config

FIELDS = {
    "num_steps": 100,
    "optimizer.learning_rate": 0.05,
    "optimizer.warmup_steps": 10,
    "optimizer.drop_at": (0.4, 0.75),
}


def slow_rate(step: int) -> float:
    """The warm-up and drops of mmdetection as a plain function."""
    rate = 0.05
    for drop in (40, 75):
        if step >= drop:
            rate *= 0.1
    if step < 10:
        rate *= 1 - (1 - step / 10) * (1 - 1 / 3)
    return rate


def test_schedule_is_warmup_times_drops():
    schedule = learning_rate(tiny_config(**FIELDS))
    rates = [float(schedule(step)) for step in range(100)]
    np.testing.assert_allclose(rates, [slow_rate(step) for step in range(100)], rtol=1e-6)


@pytest.mark.parametrize("extend", ["1.5x,3x", "1.5x, 4800"])
def test_an_extension_follows_the_schedule_of_the_longer_run_from_the_end_on(extend):
    config = tiny_config(**FIELDS, extend=extend)
    assert run_ends(config) == (100, 150, 300)

    def slow(step):
        if step < 100:
            return slow_rate(step)
        total = 150 if step < 150 else 300
        return 0.05 * 0.1 ** sum(step >= round(s * total) for s in (0.4, 0.75))

    rates = [float(learning_rate(config)(step)) for step in range(300)]
    np.testing.assert_allclose(rates, [slow(step) for step in range(300)], rtol=1e-5)


def test_rate_scales_with_the_batch_size_and_length_with_the_images():
    fields = FIELDS | {"num_steps": 0, "train_images": 1600, "batch_size": 32}
    config = tiny_config(**fields, **{"optimizer.reference_batch_size": 16})
    assert number_of_steps(config) == 50
    assert float(learning_rate(config)(15)) == pytest.approx(0.1)
    assert float(learning_rate(config)(20)) == pytest.approx(0.01)


def test_what_is_due_after_each_update():
    fields = {"eval.every_steps": 40, "checkpoint_every": 30, "extend": "1.5x"}
    config = tiny_config(**FIELDS | fields)
    schedule = Schedule(config)
    assert schedule.steps == 150
    steps = range(1, 151)
    assert [step for step in steps if schedule.extends(step)] == [100]
    assert [step for step in steps if schedule.evaluation_due(step)] == [40, 80, 100, 120, 150]
    saved = [30, 40, 60, 80, 90, 100, 120, 150]
    assert [step for step in steps if schedule.checkpoint_due(step)] == saved
    with config.unlocked():
        config.data.eval, config.checkpoint_every = "", 0
    schedule = Schedule(config)
    assert not any(map(schedule.evaluation_due, steps))
    assert [step for step in steps if schedule.checkpoint_due(step)] == [100, 150]


def gradients(step: int) -> np.ndarray:
    return np.random.default_rng(step).normal(size=(4, 3)).astype(np.float32)


def run_ours(config, steps: int) -> np.ndarray:
    optimizer = make_optimizer(config)
    params = jnp.asarray(gradients(-1 % 1000))
    state = optimizer.init(params)
    for step in range(steps):
        updates, state = optimizer.update(jnp.asarray(gradients(step)), state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params)


def test_sgd_equals_the_plain_recurrence():
    params = gradients(-1 % 1000).astype(np.float64)
    velocity = np.zeros_like(params)
    for step in range(60):
        velocity = 0.9 * velocity + gradients(step) + 5e-4 * params
        params = params - slow_rate(step) * velocity
    np.testing.assert_allclose(run_ours(tiny_config(**FIELDS), 60), params, rtol=1e-4, atol=1e-5)


def test_sgd_equals_pytorchs():
    torch = pytest.importorskip("torch")
    params = torch.tensor(gradients(-1 % 1000), requires_grad=True)
    sgd = torch.optim.SGD([params], lr=0.05, momentum=0.9, weight_decay=5e-4)
    for step in range(60):
        sgd.param_groups[0]["lr"] = slow_rate(step)
        params.grad = torch.tensor(gradients(step))
        sgd.step()
    ours = run_ours(tiny_config(**FIELDS), 60)
    np.testing.assert_allclose(ours, params.detach().numpy(), rtol=1e-4, atol=1e-5)


NETWORK = {
    "conv1": {"kernel": (3, 4), "bias": (4,)},
    "norm1": {"scale": (4,), "bias": (4,)},
    "conv4_3_l2": {"scale": (4,)},
    "head": {"level1": {"class_conv": {"bias": (2,), "kernel": (4, 2)}}},
}
NETWORK["head"]["level1"]["class_norm"] = {"scale": (2,), "bias": (2,)}


def network(step):
    rng = np.random.default_rng(step)
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    draw = lambda shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, NETWORK, is_leaf=is_shape)


@pytest.mark.parametrize("no_decay", ["", "biases", "norms", "head_norms", "biases, head_norms"])
def test_decay_and_rate_by_kind_of_parameter(no_decay):
    """Against a plain recurrence for each array, told apart by hand."""
    config = tiny_config(
        **FIELDS, **{"optimizer.no_decay": no_decay, "optimizer.bias_lr_mult": 2.0}
    )
    without = {
        "": (),
        "biases": ("conv1/bias", "head/level1/class_conv/bias"),
        "norms": (
            *("norm1/scale", "norm1/bias", "conv4_3_l2/scale"),
            *("head/level1/class_norm/scale", "head/level1/class_norm/bias"),
        ),
        "head_norms": ("head/level1/class_norm/scale", "head/level1/class_norm/bias"),
    }
    spared = {path for name in no_decay.split(",") for path in without[name.strip()]}
    optimizer = make_optimizer(config)
    params = network(99)
    state = optimizer.init(params)
    want = {name: x.astype(np.float64) for name, x in flat(params).items()}
    velocity = {name: np.zeros_like(x) for name, x in want.items()}
    for step in range(60):
        gradients = network(step)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for name, gradient in flat(gradients).items():
            decay = 0 if name in spared else 5e-4
            velocity[name] = 0.9 * velocity[name] + gradient + decay * want[name]
            twice = name in ("conv1/bias", "head/level1/class_conv/bias")
            want[name] -= (2 if twice else 1) * slow_rate(step) * velocity[name]
    for name, value in flat(params).items():
        np.testing.assert_allclose(value, want[name], rtol=1e-4, atol=1e-5, err_msg=name)


def flat(tree):
    return {"/".join(path): x for path, x in traverse_util.flatten_dict(tree).items()}


def test_by_default_the_state_is_that_of_older_runs():
    params = network(0)
    want = optax.chain(
        optax.add_decayed_weights(5e-4), optax.sgd(learning_rate(tiny_config()), momentum=0.9)
    )
    got = make_optimizer(tiny_config()).init(params)
    assert jax.tree.structure(got) == jax.tree.structure(want.init(params))
