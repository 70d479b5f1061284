"""BatchNorm over spans of a batch that is split over 8 devices, compared with NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from scratchdet_jax.errors import UserError
from scratchdet_jax.models.norm_groups import check_norm_span
from scratchdet_jax.models.normalization import BatchNorm

DEVICES, LOCAL, CHANNELS = 8, 4, 3
TOTAL = DEVICES * LOCAL
SHAPE = (TOTAL, 2, 3, CHANNELS)
DECAY, EPSILON = 0.7, 1e-3

needs_devices = pytest.mark.skipif(
    jax.device_count() < DEVICES, reason="needs 8 devices: --xla_force_host_platform_device_count=8"
)


def make_case(seed=0):
    """Inputs with a mean and scale per image, a cotangent, variables unlike the initial ones."""
    rng = np.random.default_rng(seed)
    scales = rng.uniform(0.5, 3, (TOTAL, 1, 1, CHANNELS))
    x = rng.normal(size=SHAPE) * scales + 2 * rng.normal(size=(TOTAL, 1, 1, CHANNELS))
    cotangent = rng.normal(size=SHAPE)
    variables = {
        "params": {"scale": rng.uniform(0.5, 2, CHANNELS), "bias": rng.normal(size=CHANNELS)},
        "batch_stats": {"mean": rng.normal(size=CHANNELS), "var": rng.uniform(1, 2, CHANNELS)},
    }
    return jax.tree.map(lambda a: a.astype(np.float32), (x, cotangent, variables))


def oracle(x, cotangent, variables, span):
    """Forward, running statistics and gradients of sum(cotangent · output), group by group."""
    x, cotangent, variables = jax.tree.map(
        lambda a: a.astype(np.float64), (x, cotangent, variables)
    )
    params, stats = variables["params"], variables["batch_stats"]
    outputs, grad_x = np.empty_like(x), np.empty_like(x)
    grad_scale, grad_bias = np.zeros(CHANNELS), np.zeros(CHANNELS)
    means, variances = [], []
    for start in range(0, len(x), span):
        rows = slice(start, start + span)
        flat, dy = x[rows].reshape(-1, CHANNELS), cotangent[rows].reshape(-1, CHANNELS)
        deviation = np.sqrt(flat.var(0) + EPSILON)
        normalised = (flat - flat.mean(0)) / deviation
        y = normalised * params["scale"] + params["bias"]
        # Ioffe & Szegedy 2015, section 3: the gradient, simplified.
        dx = dy - dy.mean(0) - normalised * (dy * normalised).mean(0)
        outputs[rows] = y.reshape(x[rows].shape)
        grad_x[rows] = (dx * params["scale"] / deviation).reshape(x[rows].shape)
        grad_scale += (dy * normalised).sum(0)
        grad_bias += dy.sum(0)
        means.append(flat.mean(0))
        variances.append(flat.var(0, ddof=1))
    running = {
        "mean": DECAY * stats["mean"] + (1 - DECAY) * np.mean(means, 0),
        "var": DECAY * stats["var"] + (1 - DECAY) * np.mean(variances, 0),
    }
    return outputs, running, grad_x, {"scale": grad_scale, "bias": grad_bias}


def make_step(span, axis_name):
    """One replica: outputs, new running statistics, gradients of its part of the loss."""
    norm = BatchNorm(axis_name, span, DECAY, EPSILON)

    def step(x, cotangent, variables):
        def loss(x, params):
            y, updates = norm.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            return (y * cotangent).sum(), (y, updates["batch_stats"])

        (_, (y, stats)), (grad_x, grads) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            x, variables["params"]
        )
        if axis_name:
            grads = jax.lax.psum(grads, axis_name)
        return y, stats, grad_x, grads

    return step


def over_pmap(step, x, cotangent, variables):
    split = [a.reshape(DEVICES, LOCAL, *a.shape[1:]) for a in (x, cotangent)]
    y, stats, grad_x, grads = jax.pmap(step, "batch", in_axes=(0, 0, None))(*split, variables)
    return y.reshape(SHAPE), stats, grad_x.reshape(SHAPE), grads


def over_shard_map(step, x, cotangent, variables):
    batch, whole = PartitionSpec("batch"), PartitionSpec()

    def with_replica_axis(x, cotangent, variables):
        y, stats, grad_x, grads = step(x, cotangent, variables)
        stats, grads = jax.tree.map(lambda a: a[None], (stats, grads))
        return y, stats, grad_x, grads

    mesh = Mesh(np.array(jax.devices()[:DEVICES]), ("batch",))
    mapped = jax.shard_map(
        with_replica_axis,
        mesh=mesh,
        in_specs=(batch, batch, whole),
        out_specs=batch,
        check_vma=False,
    )
    return jax.jit(mapped)(x, cotangent, variables)


def assert_equal_to_oracle(got, want):
    """Tolerance 1e-5 of the quantities, which are of order 1 (gradients of parameters: 10)."""
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-5, err_msg=str(path))


@needs_devices
@pytest.mark.parametrize("mapping", [over_pmap, over_shard_map])
@pytest.mark.parametrize("span", [0, 1, 2, 4, 8, 16, 32])
def test_span_over_devices(span, mapping):
    case = make_case()
    y, stats, grad_x, grads = mapping(make_step(span, "batch"), *case)
    for leaf in jax.tree.leaves(stats):
        assert leaf.shape == (DEVICES, CHANNELS)
        # Exactly: a replicated state must have the same bits on every replica.
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[0], leaf.shape))
    stats, grads = jax.tree.map(lambda a: a[0], (stats, grads))
    assert_equal_to_oracle((y, stats, grad_x, grads), oracle(*case, min(span or TOTAL, TOTAL)))


@pytest.mark.parametrize("span", [0, 1, 8, 32, 64])  # 64: more than there are
def test_span_on_one_device(span):
    case = make_case(1)
    got = jax.jit(make_step(span, None))(*case)
    assert_equal_to_oracle(got, oracle(*case, min(span or TOTAL, TOTAL)))


@needs_devices
@pytest.mark.parametrize("span", [3, 6, 12])
def test_span_that_does_not_fit(span):
    # 3: splits a replica's 4 images; 6: splits replicas; 12: splits the batch of 32.
    with pytest.raises(UserError, match=rf"config\.model\.norm_span is {span}, .* 32 with 4 per"):
        over_pmap(make_step(span, "batch"), *make_case())


def accepts(span, local, replicas):
    try:
        check_norm_span(span, local, replicas)
    except UserError:
        return False
    return True


def divides_into_groups(span, local, replicas):
    """Whether each group of `span` images is complete and splits no replica that it shares.

    A span of more images than there are is that of all.
    """
    total = local * replicas
    span = min(span, total)
    if span < 0 or (span and total % span):
        return False
    groups = [set(range(i, i + span)) for i in range(0, total, span)] if span else []
    blocks = [set(range(i, i + local)) for i in range(0, total, local)]
    return all(g <= b or b <= g or not g & b for g in groups for b in blocks)


@settings(deadline=None, max_examples=500)
@given(span=st.integers(-8, 100), local=st.integers(1, 12), replicas=st.integers(1, 8))
def test_the_rule_accepts_what_divides_into_groups(span, local, replicas):
    assert accepts(span, local, replicas) == divides_into_groups(span, local, replicas)


@pytest.mark.parametrize("span", [-1, 0, 7, 1000])
def test_without_a_batch_the_rule_refuses_only_negative_spans(span):
    assert accepts(span, None, 1) == (span >= 0)


@needs_devices
@settings(deadline=None, max_examples=30, derandomize=True)
@example(span=4, local=2, replicas=6)
@example(span=6, local=4, replicas=3)
@example(span=9, local=4, replicas=2)  # more than there are
@given(span=st.integers(0, 12), local=st.integers(1, 6), replicas=st.integers(1, 8))
def test_training_works_for_exactly_the_accepted_spans(span, local, replicas):
    """BatchNorm itself: statistics of each group where the rule accepts, else its UserError."""
    x = np.random.default_rng(span).normal(0, 2, (replicas, local, 8, CHANNELS)).astype(np.float32)
    norm = BatchNorm("batch", span, DECAY, EPSILON)
    variables = norm.init(jax.random.key(0), x[0], train=False)
    run = jax.pmap(
        lambda x: norm.apply(variables, x, train=True, mutable=["batch_stats"])[0], "batch"
    )
    if not accepts(span, local, replicas):
        with pytest.raises(UserError, match=r"config\.model\.norm_span"):
            run(x)
        return
    total = local * replicas
    groups = x.astype(np.float64).reshape(-1, min(span or total, total) * 8, CHANNELS)
    centred = groups - groups.mean(1, keepdims=True)
    want = centred / np.sqrt(groups.var(1, keepdims=True) + EPSILON)
    np.testing.assert_allclose(run(x), want.reshape(x.shape), rtol=1e-4, atol=1e-4)


def test_evaluation_uses_running_statistics_and_no_axis():
    x, _, variables = make_case(2)
    norm = BatchNorm("batch", 2, DECAY, EPSILON)
    y, updates = norm.apply(variables, x, train=False, mutable=["batch_stats"])
    stats, params = variables["batch_stats"], variables["params"]
    want = (x - stats["mean"]) / np.sqrt(stats["var"] + EPSILON) * params["scale"] + params["bias"]
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    for name, value in stats.items():
        np.testing.assert_array_equal(updates["batch_stats"][name], value)


def test_initial_state_needs_no_axis():
    variables = BatchNorm("batch").init(jax.random.key(0), jnp.zeros((2, 5)), train=False)
    want = {
        "params": {"scale": np.ones(5), "bias": np.zeros(5)},
        "batch_stats": {"mean": np.zeros(5), "var": np.ones(5)},
    }
    jax.tree.map(np.testing.assert_array_equal, dict(variables), want)


def test_training_leaves_immutable_statistics_unchanged():
    x, _, variables = make_case(3)
    norm = BatchNorm(None, 0, DECAY, EPSILON)
    y = norm.apply(variables, x, train=True)
    np.testing.assert_allclose(y, oracle(x, x, variables, TOTAL)[0], rtol=1e-5, atol=3e-5)


def test_variance_is_accurate_under_a_large_mean():
    # Mean 1000, deviation 0.1: E[x²] − E[x]² about zero would be off by about 0.06 in float32.
    x, cotangent, variables = make_case(4)
    x = (1000 + 0.1 * np.random.default_rng(4).normal(size=SHAPE)).astype(np.float32)
    variables["batch_stats"]["mean"] = np.full(CHANNELS, 999.9, np.float32)
    variables["batch_stats"]["var"] = np.full(CHANNELS, 0.01, np.float32)
    y, stats, *_ = jax.jit(make_step(0, None))(x, cotangent, variables)
    want_y, want_stats, *_ = oracle(x, cotangent, variables, TOTAL)
    np.testing.assert_allclose(stats["var"], want_stats["var"], rtol=1e-4)
    np.testing.assert_allclose(y, want_y, atol=3e-3)  # x itself is rounded to 6e-5


@pytest.mark.parametrize("value", [0.0, 3e4])
def test_constant_channel_stays_finite(value):
    _, cotangent, variables = make_case(5)
    x = np.full(SHAPE, value, np.float32)
    y, stats, grad_x, grads = jax.jit(make_step(0, None))(x, cotangent, variables)
    for leaf in jax.tree.leaves((y, stats, grad_x, grads)):
        assert np.isfinite(leaf).all()
    assert (stats["var"] >= 0).all()


def test_bfloat16_activations_keep_float32_statistics():
    x, cotangent, variables = make_case(6)
    rounded = jnp.asarray(x, jnp.bfloat16)
    norm = BatchNorm(None, 0, DECAY, EPSILON, jnp.bfloat16)
    y, updates = norm.apply(variables, rounded, train=True, mutable=["batch_stats"])
    want, running, *_ = oracle(np.asarray(rounded, np.float32), cotangent, variables, TOTAL)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32), want, rtol=2**-8, atol=1e-4)
    for name, value in running.items():
        assert updates["batch_stats"][name].dtype == jnp.float32
        np.testing.assert_allclose(updates["batch_stats"][name], value, rtol=1e-5, atol=1e-5)
