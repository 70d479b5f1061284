"""SSD's augmentation against plain NumPy loops and OpenCV."""

import dataclasses
import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scratchdet_jax.config import defaults
from scratchdet_jax.detector import augment_options
from scratchdet_jax.errors import UserError
from scratchdet_jax.ops import augment as aug
from scratchdet_jax.ops import resample
from tests.ops.oracles import CV2_FLAGS

S = 24
CANVAS = (48, 56)
M = 5
DEFAULT = augment_options(defaults.get_config())
OFF = dataclasses.replace(
    DEFAULT,
    photometric_probability=0.0,
    expand_probability=0.0,
    crop=False,
    interpolations=("linear",),
    flip_probability=0.0,
)


@functools.cache
def augmenter(options):
    """`augment` over a batch, compiled."""
    return jax.jit(jax.vmap(lambda *example: aug.augment(*example, options, S)))


def example_batch(count, seed=0, padding=None):
    """Noise images of random sizes; the padding is noise too, or one value."""
    rng = np.random.default_rng(seed)
    sizes = np.stack([rng.integers(8, side + 1, count) for side in CANVAS], axis=1)
    images = rng.integers(0, 256, (count, *CANVAS, 3), dtype=np.uint8)
    if padding is not None:
        for image, (height, width) in zip(images, sizes, strict=True):
            image[height:], image[:, width:] = padding, padding
    low = rng.uniform(0, 0.7, (count, M, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.05, 0.3, (count, M, 2))], axis=-1)
    labels = rng.integers(0, 4, (count, M))
    boxes[labels == 0] = 0
    ignore = (rng.uniform(size=(count, M)) < 0.3) & (labels > 0)
    return (
        images,
        sizes.astype(np.int32),
        boxes.astype(np.float32),
        labels.astype(np.int32),
        ignore,
    )


# Boxes --------------------------------------------------------------------------------------------


def place_boxes_loop(boxes, labels, ignore, size, window, flip):
    """One box at a time, in float64, step by step as in SSD."""
    top, left, height, width = (int(side) for side in window)
    placed = np.zeros((len(boxes), 4))
    kept_labels, kept_ignore = np.zeros(len(boxes), int), np.zeros(len(boxes), bool)
    for i, (ymin, xmin, ymax, xmax) in enumerate(boxes.astype(np.float64)):
        if labels[i] == 0 or not np.all(np.isfinite(boxes[i])):
            continue
        ymin, ymax = ymin * size[0], ymax * size[0]
        xmin, xmax = xmin * size[1], xmax * size[1]
        centre_y, centre_x = (ymin + ymax) / 2, (xmin + xmax) / 2
        if not (top <= centre_y <= top + height and left <= centre_x <= left + width):
            continue
        ymin, ymax = max(ymin, top), min(ymax, top + height)
        xmin, xmax = max(xmin, left), min(xmax, left + width)
        if ymin >= ymax or xmin >= xmax:
            continue
        if flip:
            xmin, xmax = 2 * left + width - xmax, 2 * left + width - xmin
        placed[i] = (
            (ymin - top) / height,
            (xmin - left) / width,
            (ymax - top) / height,
            (xmax - left) / width,
        )
        kept_labels[i], kept_ignore[i] = labels[i], ignore[i]
    return placed, kept_labels, kept_ignore


# Multiples of 1/64 in an image of 64 × 32 pixels: rounding never decides if a centre is inside.
coordinate = st.one_of(
    st.integers(-16, 80).map(lambda n: n / 64), st.sampled_from([np.nan, np.inf])
)
box_rows = st.lists(
    st.tuples(coordinate, coordinate, coordinate, coordinate, st.integers(0, 3), st.booleans()),
    max_size=M,
)
place_boxes = jax.jit(aug.place_boxes)


@settings(deadline=None, max_examples=200)
@example(rows=[(0.0, 0.0, 0.5, 0.5, 1, True)], window=(16, 8, 20, 20), flip=False)  # on the edge
@example(rows=[(0.0, 0.0, 0.5, 0.5, 1, True)], window=(6, 2, 10, 6), flip=True)
@given(
    rows=box_rows,
    window=st.tuples(
        st.integers(-40, 60), st.integers(-40, 30), st.integers(1, 99), st.integers(1, 99)
    ),
    flip=st.booleans(),
)
def test_boxes_match_the_loop(rows, window, flip):
    boxes, labels, ignore = np.zeros((M, 4), np.float32), np.zeros(M, np.int32), np.zeros(M, bool)
    for i, row in enumerate(rows):
        boxes[i], labels[i], ignore[i] = row[:4], row[4], row[5]
    size = np.array([64, 32], np.int32)
    window = resample.Window(*np.array(window, np.int32))
    actual = place_boxes(boxes, labels, ignore, size, window, flip)
    expected = place_boxes_loop(boxes, labels, ignore, size, window, flip)
    np.testing.assert_allclose(actual[0], expected[0], atol=1e-5)
    np.testing.assert_array_equal(actual[1], expected[1])
    np.testing.assert_array_equal(actual[2], expected[2])


# Pixels -------------------------------------------------------------------------------------------


def test_pixels_and_boxes_match_opencv():
    """Applies the draws step by step: mean canvas, crop, cv2.resize, flip."""
    count = 100
    options = dataclasses.replace(DEFAULT, photometric_probability=0.0)
    images, sizes, boxes, labels, ignore = example_batch(count)
    keys = jax.random.split(jax.random.key(1), count)
    outputs = augmenter(options)(keys, images, sizes, boxes, labels, ignore)

    # The draws of `augment`, in its order: colours, window, kernel, flip.
    @jax.jit
    @jax.vmap
    def draws(key, size, boxes, labels):
        _, key_window, key_kernel, key_flip = jax.random.split(key, 4)
        window = aug.draw_window(key_window, size, boxes, labels, options)
        return window, jax.random.choice(key_kernel, 5), jax.random.bernoulli(key_flip)

    windows, kernels, flips = draws(keys, sizes, boxes, labels)
    windows, kernels, flips = np.stack(windows, axis=1), np.asarray(kernels), np.asarray(flips)
    assert set(kernels) == set(range(5)) and 0 < flips.sum() < count
    outputs = [np.asarray(part) for part in outputs]

    for i, (top, left, height, width) in enumerate(windows):
        plane = np.empty((600, 600, 3), np.float32)
        plane[:] = DEFAULT.mean
        rows, columns = sizes[i]
        plane[200 : 200 + rows, 200 : 200 + columns] = images[i, :rows, :columns]
        cut = plane[200 + top :, 200 + left :][:height, :width]
        assert cut.shape[:2] == (height, width)
        name = resample.KERNELS[kernels[i]]
        expected = cv2.resize(cut, (S, S), interpolation=CV2_FLAGS[name])
        expected = np.clip(expected, 0, 255)
        compared = np.ones((S, S), bool)
        if name == "nearest" or (name == "area" and min(height, width) < S):
            # Elsewhere OpenCV's floor of an inexact double decides: see test_resample.
            cell = np.arange(S)
            compared = (cell * height % S != 0)[:, None] & (cell * width % S != 0)
        if flips[i]:
            expected, compared = expected[:, ::-1], compared[:, ::-1]
        np.testing.assert_allclose(
            outputs[0][i][compared], expected[compared], rtol=0, atol=0.02, err_msg=name
        )
        placed = place_boxes_loop(
            boxes[i], labels[i], ignore[i], sizes[i], windows[i], bool(flips[i])
        )
        np.testing.assert_allclose(outputs[1][i], placed[0], atol=1e-5)
        np.testing.assert_array_equal(outputs[2][i], placed[1])
        np.testing.assert_array_equal(outputs[3][i], placed[2])


def test_padding_has_no_effect():
    keys = jax.random.split(jax.random.key(2), 32)
    outputs = [augmenter(DEFAULT)(keys, *example_batch(32, padding=value)) for value in (0, 255)]
    for left, right in zip(*outputs, strict=True):
        np.testing.assert_array_equal(left, right)


# Colours ------------------------------------------------------------------------------------------


def colours_opencv(image, colours, depth):
    """SSD's ApplyDistort with OpenCV: depth uint8 as SSD, or float32 without rounding."""
    brightness, contrast_first, saturation, hue, contrast_last = (float(c) for c in colours)

    def stored(array):
        return np.clip(np.rint(array) if depth == np.uint8 else array, 0, 255).astype(depth)

    image = stored(image.astype(np.float64) + brightness)
    image = stored(image.astype(np.float64) * contrast_first)
    for factor, shift in ((saturation, 0.0), (1.0, hue)):  # two round trips, as SSD
        if depth == np.uint8:
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.float64)
            hsv[..., 1] = stored(hsv[..., 1] * factor)
            hsv[..., 0] = stored(hsv[..., 0] + shift)
            image = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
        else:
            hsv = cv2.cvtColor(image / np.float32(255), cv2.COLOR_RGB2HSV)  # 0…360, 0…1, 0…1
            hsv[..., 1] = np.minimum(hsv[..., 1] * factor, 1)
            hsv[..., 0] = np.maximum(hsv[..., 0] + 2 * shift, 0) % 360
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * np.float32(255)
    return stored(image.astype(np.float64) * contrast_last)


def colour_image(seed=0):
    """Random colours, greys, pure colours, black and white."""
    image = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image[0] = image[0, :, :1]
    image[1, :8] = [[b * 255 for b in (i & 1, i >> 1 & 1, i >> 2)] for i in range(8)]
    return image


apply_colours = jax.jit(aug.apply_colours)


@settings(deadline=None, max_examples=60)
@given(
    brightness=st.floats(-32, 32),
    contrast=st.floats(0.5, 1.5),
    saturation=st.floats(0.5, 1.5),
    hue=st.floats(-18, 18),
    first=st.booleans(),
    seed=st.integers(0, 99),
)
def test_colours_match_opencv(brightness, contrast, saturation, hue, first, seed):
    values = (brightness, contrast if first else 1, saturation, hue, 1 if first else contrast)
    colours = aug.Colours(*np.array(values, np.float32))
    image = colour_image(seed)
    actual = np.asarray(apply_colours(image.astype(np.float32), colours))
    # Where the hue is 0 or just below 360 degrees, rounding decides whether SSD clips it at 0, so a
    # few pixels may differ by any amount.
    unrounded = np.abs(actual - colours_opencv(image, colours, np.float32)).max(axis=-1)
    assert np.mean(unrounded > 0.01) <= 0.002
    # Compared with SSD's bytes: half a step of 8-bit hue is 1/60 of the chroma (4 levels) at each
    # of two conversions, and a contrast of 1.5 may follow.
    as_ssd = np.abs(actual - colours_opencv(image, colours, np.uint8)).max(axis=-1)
    assert np.mean(as_ssd) < 4.5
    assert np.mean(as_ssd > 12) <= 0.03


def test_neutral_colours_change_nothing():
    colours = aug.Colours(*np.array([0, 1, 1, 0, 1], np.float32))
    image = colour_image().astype(np.float32)
    np.testing.assert_array_equal(apply_colours(image, colours), image)


def test_distribution_of_colours():
    count = 20000
    keys = jax.random.split(jax.random.key(4), count)
    drawn = jax.vmap(functools.partial(aug.draw_colours, options=DEFAULT))(keys)
    drawn = jax.tree.map(np.asarray, drawn)
    four_sigma = 4 * 0.5 / np.sqrt(count)
    contrast = drawn.contrast_first * drawn.contrast_last
    for amount, neutral, low, high in (
        (drawn.brightness, 0, -32, 32),
        (contrast, 1, 0.5, 1.5),
        (drawn.saturation, 1, 0.5, 1.5),
        (drawn.hue, 0, -18, 18),
    ):
        used = amount != neutral
        assert abs(used.mean() - 0.5) < four_sigma
        share = (amount[used] - low) / (high - low)
        assert share.min() >= 0 and share.max() <= 1
        assert abs(share.mean() - 0.5) < 4 * np.sqrt(1 / 12 / used.sum())
        assert abs(share.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / used.sum())
    contrasted = contrast != 1
    first = (drawn.contrast_first != 1)[contrasted]
    assert not np.any((drawn.contrast_first != 1) & (drawn.contrast_last != 1))
    assert abs(first.mean() - 0.5) < 4 * 0.5 / np.sqrt(contrasted.sum())
    # Independent of each other.
    assert abs(((drawn.hue != 0) & contrasted).mean() - 0.25) < four_sigma


# Complete augmentation ----------------------------------------------------------------------------


def test_results_depend_only_on_the_key():
    batch = example_batch(32)
    keys = jax.random.split(jax.random.key(9), 32)
    first = augmenter(DEFAULT)(keys, *batch)
    again = augmenter(DEFAULT)(keys, *batch)
    order = np.random.default_rng(0).permutation(32)
    shuffled = augmenter(DEFAULT)(keys[order], *(part[order] for part in batch))
    for one, two, three in zip(first, again, shuffled, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(np.asarray(one)[order], three)
    other = augmenter(DEFAULT)(jax.random.split(jax.random.key(10), 32), *batch)
    assert not np.any(np.all(np.asarray(first[0]) == np.asarray(other[0]), axis=(1, 2, 3)))


def test_images_without_boxes_and_broken_boxes_stay_finite():
    images, sizes, boxes, labels, ignore = example_batch(32)
    boxes[:8], labels[:8] = 0, 0
    boxes[8:16] = np.nan
    boxes[16:24] = boxes[16:24, :, [2, 3, 0, 1]]  # swapped corners
    sizes[24:28] = 1
    sizes[28:] = 0  # no image
    keys = jax.random.split(jax.random.key(11), 32)
    image, boxes, labels, ignore = map(
        np.asarray, augmenter(DEFAULT)(keys, images, sizes, boxes, labels, ignore)
    )
    assert image.shape == (32, S, S, 3) and image.dtype == np.float32
    assert np.all(np.isfinite(image)) and image.min() >= 0 and image.max() <= 255
    assert np.all(np.isfinite(boxes)) and boxes.min() >= 0 and boxes.max() <= 1
    assert not np.any(labels[:24]) and not np.any(ignore[:24])
    assert not np.any(boxes[labels == 0])
    assert np.all((boxes[..., 2:] > boxes[..., :2]).all(-1) == (labels > 0))


def test_everything_off_is_a_plain_resize():
    images, sizes, boxes, labels, ignore = example_batch(4)
    keys = jax.random.split(jax.random.key(12), 4)
    output = augmenter(OFF)(keys, images, sizes, boxes, labels, ignore)
    plain = [
        jax.jit(resample.resize, static_argnums=2)(*part, S)
        for part in zip(images, sizes, strict=True)
    ]
    np.testing.assert_allclose(output[0], plain, atol=1e-3)
    np.testing.assert_allclose(output[1], np.clip(boxes, 0, 1), atol=1e-6)
    np.testing.assert_array_equal(output[2], labels)
    np.testing.assert_array_equal(output[3], ignore)


def test_crop_without_constrained_samplers():
    options = dataclasses.replace(DEFAULT, crop_min_ious=())
    crop = aug.draw_crop(jax.random.key(13), np.zeros((M, 4)), np.zeros(M, bool), options)
    assert crop.shape == (4,) and np.all((crop >= 0) & (crop <= 1))


def test_options_come_from_a_config_and_are_hashable():
    config = defaults.get_config()
    with config.ignore_type():
        config.augment.crop_min_ious = [0.5]
        config.augment.contrast = (0.8, 1.2)
        config.normalize.mean = [1.0, 2.0, 3.0]
    options = augment_options(config)
    assert options.crop_min_ious == (0.5,) and options.mean == (1.0, 2.0, 3.0)
    assert options.contrast == (0.8, 1.2)
    assert hash(options) == hash(dataclasses.replace(options))


def test_all_kernels_are_in_the_defaults():
    assert DEFAULT.interpolations == resample.KERNELS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("flip_probability", 1.5),
        ("hue", -1.0),
        ("contrast", (1.5, 0.5)),
        ("crop_scale", (0.3, 1.1)),
        ("crop_min_ious", (0.5, 1.2)),
        ("expand_max_ratio", 0.5),
        ("crop_trials", 0),
        ("interpolations", ("linear", "bicubic")),
        ("interpolations", ()),
        ("mean", (1.0, 2.0)),
    ],
)
def test_impossible_options_are_named(field, value):
    with pytest.raises(UserError, match=rf"config\.augment\.{field} is .*: it must be"):
        dataclasses.replace(DEFAULT, **{field: value})


def test_shapes_and_types():
    """Shapes and types of one image, without vmap or jit."""
    images, sizes, boxes, labels, ignore = (part[0] for part in example_batch(1))
    output = jax.eval_shape(
        lambda *example: aug.augment(*example, DEFAULT, S),
        jax.random.key(0),
        *(jnp.asarray(part) for part in (images, sizes, boxes, labels, ignore)),
    )
    assert [(part.shape, part.dtype) for part in output] == [
        ((S, S, 3), jnp.float32),
        ((M, 4), jnp.float32),
        ((M,), jnp.int32),
        ((M,), jnp.bool_),
    ]
