"""The gradients of convolutions on CPUs are those of XLA's convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchdet_jax.models import convolution
from scratchdet_jax.models.convolution import convolve, weight_gradient


def gradients(f, x, kernel):
    """Outputs of f(x, kernel) and its gradients for a random cotangent."""
    y, transpose = jax.vjp(f, x, kernel)
    return y, *transpose(jax.random.normal(jax.random.key(2), y.shape))


def random(x_shape, kernel_shape):
    return jax.random.normal(jax.random.key(0), x_shape), jax.random.normal(
        jax.random.key(1), kernel_shape
    )


def plain(x, kernel, stride, dilation, padding):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((padding, padding),) * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def assert_close(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * float(jnp.abs(b).max()))


def loops(x, gradient, size, dilation, padding):
    """The weight gradient by its definition, one cell of the output and of the kernel at a time."""
    x = np.pad(np.float64(x), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    total = np.zeros((size, size, x.shape[-1], gradient.shape[-1]))
    for b, h, w in np.ndindex(gradient.shape[:3]):
        for i, j in np.ndindex(size, size):
            cell = x[b, h + i * dilation, w + j * dilation]
            total[i, j] += np.outer(cell, np.float64(gradient[b, h, w]))
    return total


@settings(max_examples=8, deadline=None)
@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    size=st.integers(1, 4),
    dilation=st.integers(1, 3),
    padding=st.integers(0, 4),
    cells=st.sampled_from([1, 7, 64, 1024]),
)
def test_weight_gradient_by_its_definition(batch, height, width, size, dilation, padding, cells):
    rows, columns = (n + 2 * padding - dilation * (size - 1) for n in (height, width))
    if min(rows, columns) < 1:
        return
    x, gradient = random((batch, height, width, 2), (batch, rows, columns, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "CELLS", cells)
        found = weight_gradient(x, gradient, size, dilation, padding)
    expected = loops(x, gradient, size, dilation, padding)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("size", "stride", "dilation", "padding"),
    [
        (3, 1, 1, 1),
        (3, 2, 1, 1),
        (3, 1, 6, 6),
        (3, 1, 1, 0),
        (4, 1, 1, 1),
        (1, 1, 1, 0),
        (1, 2, 1, 0),
        (1, 1, 1, 1),
    ],
)
@pytest.mark.parametrize("sides", [(33, 38), (9, 10)])
def test_gradients_are_those_of_xla(size, stride, dilation, padding, sides):
    x, kernel = random((2, *sides, 16), (size, size, 16, 24))
    found = gradients(lambda x, k: convolve(x, k, stride, dilation, padding), x, kernel)
    assert_close(found, gradients(lambda x, k: plain(x, k, stride, dilation, padding), x, kernel))


def test_products_are_used_for_large_maps_with_enough_channels(monkeypatch):
    calls = []

    def record(*arguments):
        calls.append(arguments)
        return weight_gradient(*arguments)

    monkeypatch.setattr(convolution, "weight_gradient", record)

    def count(sides, channels, features, dtype=jnp.float32):
        calls.clear()
        x, kernel = random((1, *sides, channels), (3, 3, channels, features))
        f = jax.grad(lambda k: convolve(x.astype(dtype), k, 1, 1, 1).sum().astype(jnp.float32))
        f(kernel.astype(dtype))
        return len(calls)

    assert count((33, 32), 16, 16) == 1
    assert count((32, 32), 16, 16) == 0
    assert count((33, 32), 3, 16) == 0
    assert count((33, 32), 16, 8) == 0
    assert count((33, 32), 16, 16, jnp.bfloat16) == 0
