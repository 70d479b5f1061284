"""The packed layout gives what the plain one gives: outputs, gradients and running statistics."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from scratchdet_jax.models import layers, packing, pooling
from scratchdet_jax.models.layers import Layers
from scratchdet_jax.models.packing import Packed
from scratchdet_jax.models.pooling import max_pool_2x2
from scratchdet_jax.models.ssd import build_model
from tests.tiny import random_variables

ANCHORS = (4, 6, 6)


@pytest.mark.parametrize("width", [4, 5])
def test_pack_and_unpack_are_inverse(width):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3, width, 5)))
    packed = packing.pack(x)
    assert packed.shape == x.shape and packed.array.shape == (3, 3, width, 10)
    np.testing.assert_array_equal(packed.array[1, ..., 5:], x[4])
    np.testing.assert_array_equal(packing.unpack(packed), x)


def test_only_even_batches_of_narrow_maps_are_packed():
    assert packing.fits((2, 9, 9, 64), 64) and packing.fits((4, 9, 9, 3), 64)
    assert not packing.fits((3, 9, 9, 64), 64)
    assert not packing.fits((2, 9, 9, 64), 65) and not packing.fits((2, 9, 9, 65), 64)


def test_a_block_diagonal_kernel_keeps_the_images_apart():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(4, 5, 6, 2)), rng.normal(size=(3, 3, 2, 7))
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(2, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    packed = convolve(packing.pack(jnp.asarray(x)).array, packing.block_diagonal(kernel))
    np.testing.assert_allclose(
        packing.unpack(Packed(packed)), convolve(x, kernel), rtol=0, atol=1e-5
    )


class Trunk(nn.Module):
    """Two convolutions with statistics over groups of images, a pooling, and a sum."""

    layers: Layers

    @nn.compact
    def __call__(self, x, train):
        x = self.layers.convolve(x, 5, 3, name="conv1")
        x = self.layers.normalize(x, train, name="norm1", relu=True, pool=True)
        y = self.layers.convolve(x, 5, 3, name="conv2")
        y = self.layers.normalize(y, train, name="norm2")
        return packing.unpack(layers.relu(layers.add(x, y)))


def results(module, x, variables, cotangent):
    """Outputs, running statistics, and gradients by parameters and inputs."""

    def loss(params, x):
        outputs, updates = module.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        outputs = jnp.concatenate([y.reshape(len(y), -1) for y in jax.tree.leaves(outputs)], 1)
        return (outputs * cotangent[:, : outputs.shape[1]]).sum(), (outputs, updates)

    differentiate = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    gradients, (outputs, updates) = differentiate(variables["params"], x)
    return outputs, updates, gradients


def assert_close(got, want, tolerance=2e-5):
    """Compares trees relative to the largest value of each array."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=0, atol=tolerance * max(float(np.abs(b).max()), 1e-3)
        ),
        got,
        want,
    )


@settings(deadline=None, max_examples=5, derandomize=True)
@given(
    batch=st.sampled_from([1, 2, 3, 4, 6, 8]),
    group=st.integers(0, 3),
    size=st.sampled_from([(6, 8), (4, 6), (8, 4)]),
    seed=st.integers(0, 2**16),
)
def test_packed_layers_equal_plain_ones(batch, group, size, seed):
    divisors = [d for d in range(1, batch + 1) if batch % d == 0]
    span = ([0, *divisors])[min(group, len(divisors))]
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, *size, 3)).astype(np.float32)
    cotangent = rng.normal(size=(batch, 2**12)).astype(np.float32)
    modules = [Trunk(Layers(span=span, packed=packed)) for packed in (True, False)]
    variables, others = (module.init(jax.random.key(seed), x, False) for module in modules)
    jax.tree.map(np.testing.assert_array_equal, variables, others)
    packed, wanted = (results(module, x, variables, cotangent) for module in modules)
    # Few values per group: rounding of the statistics is divided by small deviations.
    assert_close(packed, wanted, 1e-3)
    assert_close(*(module.apply(variables, x, False) for module in modules))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"norm": "none", "head_norm": "none"},
        {"preactivation": True},
        pytest.param({"depth": 50}, marks=pytest.mark.slow),
        pytest.param(
            {"stem": "conv7", "stem_stride": 2, "extra_strides": ()}, marks=pytest.mark.slow
        ),
        {"backbone": "vgg16", "norm": "none"},
    ],
    ids=lambda fields: "-".join(str(value) for value in fields.values()) or "default",
)
def test_packed_networks_equal_plain_ones(make_config, fields):
    fields = {"depth": 18, "width": 0.05, "extra_strides": (2,), **fields}
    x = np.random.default_rng(0).normal(size=(4, 35, 35, 3)).astype(np.float32)  # odd maps
    models = [
        build_model(make_config(layout=layout, **fields), 3, ANCHORS)
        for layout in ("packed", "plain")
    ]
    variables = random_variables(models[0], 35, np.random.default_rng(1))
    assert_close(*(jax.jit(model.apply, static_argnums=2)(variables, x, False) for model in models))


def test_a_packed_network_trains_as_a_plain_one(make_config):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 33, 33, 3)).astype(np.float32)
    cotangent = rng.normal(size=(4, 2**15)).astype(np.float32)
    fields = {"depth": 18, "width": 0.05, "extra_strides": (2,), "norm_span": 2}
    models = [
        build_model(make_config(layout=layout, **fields), 3, ANCHORS)
        for layout in ("packed", "plain")
    ]
    variables = random_variables(models[0], 33, np.random.default_rng(1))
    others = random_variables(models[1], 33, np.random.default_rng(1))  # the same names and shapes
    jax.tree.map(np.testing.assert_array_equal, variables, others)
    got, wanted = (results(model, x, variables, cotangent) for model in models)
    assert_close(got[:2], wanted[:2], 1e-2)  # maps of 1×1: the statistics of two values
    # A ReLU whose input is near 0 may flip, so single gradients differ: compare their direction.
    a, b = (np.concatenate([g.ravel() for g in jax.tree.leaves(r[2])]) for r in (got, wanted))
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.999


def test_statistics_over_devices_and_pairs_of_images():
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: --xla_force_host_platform_device_count=8")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 4, 4, 3)).astype(np.float32)
    cotangent = rng.normal(size=(32, 20)).astype(np.float32)
    mesh = Mesh(np.asarray(jax.devices()[:8]), ("batch",))
    variables = Trunk(Layers()).init(jax.random.key(0), x, False)
    for span in (0, 2, 4, 8):
        per_replica, shared = PartitionSpec("batch"), PartitionSpec()
        found = []
        for packed in (True, False):
            module = Trunk(Layers(axis_name="batch", span=span, packed=packed))

            def step(x, cotangent, module=module):
                outputs, updates, (grads, grad_x) = results(module, x, variables, cotangent)
                return outputs, grad_x, updates, jax.lax.psum(grads, "batch")

            mapped = jax.shard_map(
                step,
                mesh=mesh,
                in_specs=(per_replica, per_replica),
                out_specs=(per_replica, per_replica, shared, shared),
                check_vma=False,
            )
            found.append(jax.jit(mapped)(x, cotangent))
        assert_close(*found, 1e-4)


def slow_pool(x):
    """The maxima, and the gradient of their sum weighted by 1, 2, 3 …: a loop over the windows."""
    batch, height, width, channels = x.shape
    outputs = np.zeros((batch, height // 2, width // 2, channels), x.dtype)
    gradient = np.zeros_like(x)
    for weight, (b, i, j, c) in enumerate(np.ndindex(outputs.shape), 1):
        window = [(2 * i + r, 2 * j + s) for r in (0, 1) for s in (0, 1)]
        values = [x[b, row, column, c] for row, column in window]
        row, column = window[int(np.argmax(values))]
        outputs[b, i, j, c] = max(values)
        gradient[b, row, column, c] = weight
    return outputs, gradient


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [(4, 6), (5, 7), (2, 3)])
def test_pooling_against_a_loop(size, packed):
    # Few different values, so that many windows have equal maxima.
    x = np.random.default_rng(0).integers(0, 3, (2, *size, 3)).astype(np.float32)
    outputs, gradient = slow_pool(x)
    weights = np.arange(1, outputs.size + 1).reshape(outputs.shape)

    def pool(x):
        y = packing.unpack(max_pool_2x2(packing.pack(x) if packed else x))
        return (y * weights).sum(), y

    got_gradient, got = jax.grad(pool, has_aux=True)(x)
    np.testing.assert_array_equal(got, outputs)
    np.testing.assert_array_equal(got_gradient, gradient)


def test_all_ways_to_spread_the_gradient_are_equal():
    rng = np.random.default_rng(0)
    winner = jnp.asarray(rng.integers(0, 4, (3, 5, 6, 7)), jnp.uint8)
    gradient = jnp.asarray(rng.normal(size=winner.shape), jnp.bfloat16)
    windows = pooling._to_winners_by_windows(winner, gradient)
    broadcast = pooling._to_winners_by_broadcasting(winner, gradient)
    padding = pooling._to_winners_by_padding(winner, gradient)
    assert windows.dtype == padding.dtype == jnp.bfloat16
    np.testing.assert_array_equal(windows, padding)
    np.testing.assert_array_equal(broadcast, padding)
    assert float(jnp.abs(windows).sum(dtype=jnp.float32)) > 0
