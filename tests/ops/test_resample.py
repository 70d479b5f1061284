"""The two matrix products against OpenCV's resize."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchdet_jax.ops import resample
from tests.ops.oracles import CV2_FLAGS

S = 24
CANVAS = (72, 80)
# OpenCV rounds the position of a tap to float32 (an error of 4e-6 pixels at 72), which the steepest
# kernel turns into at most 4e-6 × 2 axes × 255 × 4; our float32 sums add about as much.
FLOAT_TOLERANCE = 0.01
# For uint8, OpenCV rounds the result (0.5) and, except for nearest and area, its coefficients to
# 1/2048: up to 255 / 4096 per tap and axis. Bounds for 1, 2, 4 and 8 taps; IPP is switched off.
UINT8_TOLERANCE = {"linear": 1.0, "area": 1.0, "nearest": 0.0, "cubic": 1.0, "lanczos": 2.0}

side = st.one_of(st.integers(1, 72), st.sampled_from([1, 2, S // 2, S, 2 * S, 3 * S]))
kernel_names = pytest.mark.parametrize("name", resample.KERNELS)


@pytest.fixture(autouse=True)
def plain_opencv():
    """Uses OpenCV's own code: Intel's primitives round differently."""
    used = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    yield
    cv2.ipp.setUseIPP(used)


@jax.jit
def run(canvas, size, window, kernel, fill):
    return resample.resample(canvas.astype(jnp.float32), size, window, kernel, S, fill)


def on_canvas(image, seed=0):
    """The image at the top left of a canvas of noise, and its size."""
    canvas = np.random.default_rng(seed + 1).uniform(0, 255, (*CANVAS, 3)).astype(image.dtype)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas, np.array(image.shape[:2], np.int32)


def full_window(size):
    return resample.Window(np.int32(0), np.int32(0), np.int32(size[0]), np.int32(size[1]))


def comparable(name, height, width):
    """Output cells [S, S] whose value in OpenCV does not depend on rounding.

    For nearest, and for area where it does not shrink, OpenCV takes floor(i × scale) of an inexact
    double: where i × scale is a whole number, the result may be one pixel too low.
    """
    cell = np.arange(1, S)
    rows, columns = np.ones(S, bool), np.ones(S, bool)
    if name == "nearest" or (name == "area" and not (height >= S and width >= S)):
        rows[1:] = cell * height % S != 0
        columns[1:] = cell * width % S != 0
    return rows[:, None] & columns


@kernel_names
@settings(deadline=None, max_examples=40)
@given(height=side, width=side, seed=st.integers(0, 999))
def test_float_images_match_opencv(name, height, width, seed):
    image = np.random.default_rng(seed).uniform(0, 255, (height, width, 3)).astype(np.float32)
    canvas, size = on_canvas(image, seed)
    output = run(canvas, size, full_window(size), resample.KERNELS.index(name), np.zeros(3))
    expected = np.clip(cv2.resize(image, (S, S), interpolation=CV2_FLAGS[name]), 0, 255)
    compared = comparable(name, height, width)
    np.testing.assert_allclose(
        np.asarray(output)[compared], expected[compared], rtol=0, atol=FLOAT_TOLERANCE
    )


@kernel_names
@settings(deadline=None, max_examples=25)
@given(height=side, width=side, seed=st.integers(0, 999))
def test_uint8_images_match_opencv(name, height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    canvas, size = on_canvas(image, seed)
    output = run(canvas, size, full_window(size), resample.KERNELS.index(name), np.zeros(3))
    expected = cv2.resize(image, (S, S), interpolation=CV2_FLAGS[name]).astype(np.float32)
    compared = comparable(name, height, width)
    np.testing.assert_allclose(
        np.asarray(output)[compared],
        expected[compared],
        rtol=0,
        atol=UINT8_TOLERANCE[name] + FLOAT_TOLERANCE,
    )


@settings(deadline=None, max_examples=25)
@given(height=side, width=side)
def test_nearest_takes_the_floor_exactly(height, width):
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    canvas, size = on_canvas(image)
    output = run(
        canvas, size, full_window(size), resample.KERNELS.index("nearest"), np.full(3, 7.0)
    )
    cell = np.arange(S)
    np.testing.assert_array_equal(
        output, image[cell * height // S][:, cell * width // S].astype(np.float32)
    )


@kernel_names
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_windows_match_paste_crop_resize(name, data):
    """Any window, inside or beyond the image, equals OpenCV on a canvas of the mean colour."""
    height, width = data.draw(side), data.draw(side)
    top, left = data.draw(st.integers(-60, height - 1)), data.draw(st.integers(-60, width - 1))
    window_height, window_width = data.draw(st.integers(1, 130)), data.draw(st.integers(1, 130))
    rng = np.random.default_rng(height * 100 + width)
    image = rng.uniform(0, 255, (height, width, 3)).astype(np.float32)
    fill = np.array([123.0, 117.0, 104.0], np.float32)
    plane = np.empty((400, 400, 3), np.float32)
    plane[:] = fill
    plane[100 : 100 + height, 100 : 100 + width] = image
    cut = plane[100 + top :, 100 + left :][:window_height, :window_width]
    expected = np.clip(cv2.resize(cut, (S, S), interpolation=CV2_FLAGS[name]), 0, 255)

    canvas, size = on_canvas(image)
    window = resample.Window(*np.array([top, left, window_height, window_width], np.int32))
    output = run(canvas, size, window, resample.KERNELS.index(name), fill)
    compared = comparable(name, window_height, window_width)
    np.testing.assert_allclose(
        np.asarray(output)[compared], expected[compared], rtol=0, atol=FLOAT_TOLERANCE
    )


@kernel_names
def test_padding_has_no_effect(name):
    image = np.random.default_rng(3).uniform(0, 255, (40, 31, 3)).astype(np.float32)
    outputs = []
    for padding in (0.0, 255.0):
        canvas = np.full((*CANVAS, 3), padding, np.float32)
        canvas[:40, :31] = image
        window = resample.Window(*np.array([-5, 10, 60, 40], np.int32))
        kernel = resample.KERNELS.index(name)
        outputs.append(run(canvas, np.array([40, 31]), window, kernel, np.full(3, 99.0)))
    np.testing.assert_array_equal(*outputs)
    assert np.all(np.asarray(outputs[0])[:, -1] == 99.0)  # columns 46–49 are beyond the image


@kernel_names
@pytest.mark.parametrize(("length", "other"), [(1, 1), (7, 90), (S, S), (71, 71), (200, 30)])
def test_weights_of_a_window_within_the_image_sum_to_one(name, length, other):
    weights = resample.axis_weights(
        resample.KERNELS.index(name), S, 5, length, 300, 300, length >= S and other >= S
    )
    assert weights.shape == (S, 300) and weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-6)
    assert not np.any(weights[:, :5]) and not np.any(weights[:, 5 + length :])


@pytest.mark.parametrize("result", [S, (S, 40), (50, S)])
def test_resize_is_bilinear_on_the_valid_part(result):
    image = np.random.default_rng(4).integers(0, 256, (61, 37, 3), dtype=np.uint8)
    canvas, size = on_canvas(image)
    output = jax.jit(resample.resize, static_argnums=2)(canvas, size, result)
    height, width = np.broadcast_to(result, 2).tolist()
    expected = cv2.resize(image.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    assert output.dtype == jnp.float32
    np.testing.assert_allclose(output, expected, rtol=0, atol=FLOAT_TOLERANCE)


def test_resize_of_an_empty_image_is_finite():
    """The tail of an evaluation batch is padded with images of size 0."""
    canvas = np.full((*CANVAS, 3), 200, np.uint8)
    assert np.all(np.isfinite(resample.resize(canvas, np.zeros(2, np.int32), S)))


def test_pixels_keep_full_precision():
    """Without HIGHEST, TPUs and tensor cores round the operands to bfloat16 or TF32."""
    jaxpr = jax.make_jaxpr(run)(
        np.zeros((*CANVAS, 3)), np.ones(2, np.int32), full_window((1, 1)), 0, np.zeros(3)
    )
    products = [line for line in str(jaxpr).split("\n") if "dot_general" in line]
    assert len(products) == 2
    assert str(jaxpr).count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 2
