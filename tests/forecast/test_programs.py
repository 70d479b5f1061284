"""Programs from shapes alone: FLOP against XLA's count, and the parts of a program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scratchdet_jax.forecast.programs import (
    count_flop,
    evaluation_programs,
    place,
    training_program,
)
from scratchdet_jax.parallel.devices import DeviceMapping
from tests.tiny import random_batch, tiny_config


def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (jnp.matmul, ((5, 7), (7, 3))),
        (jax.vmap(jnp.matmul), ((2, 5, 7), (2, 7, 3))),
        (convolve, ((2, 9, 9, 4), (3, 3, 4, 6))),
    ],
)
def test_flop_of_products_are_those_that_xla_counts(function, shapes):
    arguments = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    counted = count_flop(jax.make_jaxpr(function)(*arguments).jaxpr)
    compiled = jax.jit(function).lower(*arguments).compile()
    assert sum(counted.values()) == compiled.cost_analysis()["flops"]


def test_the_gradient_of_a_convolution_is_twice_its_forward_pass():
    x, kernel = jnp.zeros((2, 9, 9, 4)), jnp.zeros((3, 3, 4, 6))

    def loss(x, kernel):
        with jax.named_scope("trunk"):
            return jnp.sum(convolve(x, kernel))

    found = count_flop(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, kernel).jaxpr)
    passes = {True: 0, False: 0}
    for scope, count in found.items():
        passes[place(scope)[1]] += count
    forward = 2 * (2 * 4 * 4 * 6) * (3 * 3 * 4)
    assert passes[False] == forward
    # To the kernel as many; to the input those of its border, which the dilation rounds up.
    assert forward < passes[True] - forward < 1.3 * forward


def test_the_body_of_a_scan_counts_as_often_as_it_runs():
    def function(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, length=5)[0]

    found = count_flop(jax.make_jaxpr(function)(jnp.zeros((4, 4))).jaxpr)
    assert sum(found.values()) == 5 * 2 * 4**3


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("jit(f)/shard_map/inputs/vmap()/sub", ("inputs", False)),
        ("jit(f)/jvp(SSD)/trunk/root/conv1/conv", ("root", False)),
        ("jit(f)/transpose(jvp(SSD))/trunk/stage2/block1/conv1/conv", ("stage2", True)),
        ("jit(f)/SSD/trunk/conv4_3/conv", ("conv4", False)),
        ("jit(f)/SSD/trunk/extra3/conv1/conv", ("extras", False)),
        ("jit(f)/SSD/trunk/reduce_max", ("rest", False)),
        ("jit(f)/transpose(jvp(SSD))/head/level1/class_conv/conv", ("head", True)),
        ("jit(f)/transpose(jvp(loss))/mul", ("loss", True)),
        ("jit(f)/shard_map/update/cond", ("update", False)),
        ("", ("rest", False)),
    ],
)
def test_parts_are_found_in_scopes(scope, expected):
    assert place(scope) == expected


@pytest.mark.parametrize("kind", ["shard_map", "pmap"])
def test_arguments_are_what_training_puts_on_the_devices(kind):
    mapping = DeviceMapping(kind)
    config = tiny_config(accumulate_steps=2)
    _, shapes = training_program(config, 3, mapping).arguments
    batch = random_batch(config, 0, parts=2)
    real = mapping.put_batch({key: batch[key] for key in shapes})
    for key, array in real.items():
        assert (array.shape, array.dtype) == (shapes[key].shape, shapes[key].dtype)
        assert array.sharding == shapes[key].sharding


def test_most_flop_are_in_named_parts_and_the_backward_pass_has_twice_the_forwards():
    mapping = DeviceMapping("shard_map", jax.devices()[:1])
    config = tiny_config()
    parts = {}
    for scope, count in training_program(config, 3, mapping).flop().items():
        parts[place(scope)] = parts.get(place(scope), 0) + count
    assert not any(name in ("rest", "update") for name, _ in parts)
    for name in ("stage2", "stage3", "head"):
        assert parts[name, True] == pytest.approx(2 * parts[name, False], rel=0.01)
    (evaluation,) = evaluation_programs(config, 3, mapping)
    forward = {place(scope)[0] for scope in evaluation.flop()}
    assert {"inputs", "root", "stage1", "extras", "head"} <= forward
