"""SSD's batch sampler and expansion: the distribution of windows, against a simulation."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from scratchdet_jax.config import defaults
from scratchdet_jax.detector import augment_options
from scratchdet_jax.ops import augment as aug

M = 5
DEFAULT = augment_options(defaults.get_config())


def iou(sample, box):
    """IoU of a box with samples, given as four arrays of coordinates."""
    height = np.minimum(sample[2], box[2]) - np.maximum(sample[0], box[0])
    width = np.minimum(sample[3], box[3]) - np.maximum(sample[1], box[1])
    common = np.maximum(height, 0) * np.maximum(width, 0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (sample, box)]
    return common / (areas[0] + areas[1] - common)


def same_distribution(actual, expected):
    """Kolmogorov–Smirnov, at about four sigma: p = 2 exp(−2 · 2.27²) = 7e-5."""
    actual, expected = np.round(actual, 5), np.round(expected, 5)  # float32 has ties elsewhere
    values = np.concatenate([actual, expected])
    shares = [
        np.searchsorted(np.sort(sample), values, side="right") / len(sample)
        for sample in (actual, expected)
    ]
    limit = 2.27 * np.sqrt(1 / len(actual) + 1 / len(expected))
    return np.abs(shares[0] - shares[1]).max() < limit


def ssd_samples(rng, count):
    """SSD's SampleBBox: top, left, bottom, right, each [count]."""
    scale, aspect = rng.uniform(0.3, 1, count), rng.uniform(0.5, 2, count)
    aspect = np.minimum(np.maximum(aspect, scale**2), 1 / scale**2)
    width, height = scale * np.sqrt(aspect), scale / np.sqrt(aspect)
    left, top = (1 - width) * rng.random(count), (1 - height) * rng.random(count)
    return top, left, top + height, left + width


def sequential_ssd(rng, size, boxes):
    """Expands and crops like SSD's code, one trial at a time; returns the window in pixels."""
    height, width = size
    canvas_height, canvas_width, off_y, off_x = height, width, 0, 0
    if rng.random() < 0.5:
        ratio = rng.uniform(1, 4)
        canvas_height, canvas_width = int(height * ratio), int(width * ratio)
        off_y = int(rng.uniform(0, canvas_height - height))
        off_x = int(rng.uniform(0, canvas_width - width))
    expanded = [
        (
            (ymin * height + off_y) / canvas_height,
            (xmin * width + off_x) / canvas_width,
            (ymax * height + off_y) / canvas_height,
            (xmax * width + off_x) / canvas_width,
        )
        for ymin, xmin, ymax, xmax in boxes
    ]
    found = [(0.0, 0.0, 1.0, 1.0)]
    for minimum in (0.1, 0.3, 0.5, 0.7, 0.9, None):
        trials = ssd_samples(rng, 50)
        satisfied = np.full(50, minimum is None)
        for box in expanded:
            if minimum is not None:
                satisfied |= iou(trials, box) >= minimum
        for trial in range(50):  # up to max_sample = 1
            if satisfied[trial]:
                found.append(tuple(side[trial] for side in trials))
                break
    crop = found[rng.integers(len(found))]
    return (
        int(crop[0] * canvas_height) - off_y,
        int(crop[1] * canvas_width) - off_x,
        int((crop[2] - crop[0]) * canvas_height),
        int((crop[3] - crop[1]) * canvas_width),
    )


def window_statistics(windows, size, boxes):
    """[n, k]: statistics of each window; areas are relative to the image."""
    windows = np.asarray(windows, np.float64)
    top, left, height, width = windows.T
    centre_y = (boxes[:, 0] + boxes[:, 2])[:, None] / 2 * size[0]
    centre_x = (boxes[:, 1] + boxes[:, 3])[:, None] / 2 * size[1]
    inside = (top <= centre_y) & (centre_y <= top + height)
    inside &= (left <= centre_x) & (centre_x <= left + width)
    area = height * width / (size[0] * size[1])
    whole = (top == 0) & (left == 0) & (height == size[0]) & (width == size[1])
    pixels = boxes * np.tile(size, 2)
    corners = (top, left, top + height, left + width)
    overlaps = np.max([iou(corners, box) for box in pixels], axis=0)
    return np.stack(
        [
            whole,
            area > 1,
            area > 8,
            np.log(area),
            np.log(area) ** 2,
            np.log(width / height),
            np.log(width / height) ** 2,
            inside.sum(axis=0),
            top / size[0],
            left / size[1],
            *((overlaps >= minimum) for minimum in (0.1, 0.3, 0.5, 0.7, 0.9)),
        ],
        axis=1,
    ).astype(np.float64)


BOX_SETS = {
    "one large": [(0.1, 0.15, 0.9, 0.8)],
    "one small": [(0.6, 0.2, 0.72, 0.3)],
    "three": [(0.05, 0.1, 0.4, 0.5), (0.5, 0.55, 0.95, 0.9), (0.45, 0.1, 0.55, 0.3)],
}
SIZE = np.array([375, 500], np.int32)


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None, None))
def draw_windows(key, boxes, labels):
    return aug.draw_window(key, SIZE, boxes, labels, DEFAULT)


def draw_many_windows(seed, count, boxes):
    padded, labels = np.zeros((M, 4), np.float32), np.zeros(M, np.int32)
    padded[: len(boxes)], labels[: len(boxes)] = boxes, 1
    return np.stack(draw_windows(jax.random.split(jax.random.key(seed), count), padded, labels), 1)


@pytest.mark.parametrize("name", BOX_SETS)
def test_windows_are_distributed_as_ssds(name):
    boxes = np.array(BOX_SETS[name])
    rng = np.random.default_rng(5)
    expected = np.array([sequential_ssd(rng, SIZE.tolist(), boxes.tolist()) for _ in range(4000)])
    expected = window_statistics(expected, SIZE, boxes)
    actual = window_statistics(draw_many_windows(6, 20000, boxes), SIZE, boxes)
    sigma = np.sqrt(expected.var(axis=0) / len(expected) + actual.var(axis=0) / len(actual))
    difference = np.abs(actual.mean(axis=0) - expected.mean(axis=0))
    assert np.all(difference <= 4 * sigma), (difference / np.maximum(sigma, 1e-9), expected.mean(0))


def test_free_samples_are_distributed_as_ssds():
    options = dataclasses.replace(DEFAULT, crop_min_ious=())
    draw = functools.partial(
        aug.draw_crop, boxes=np.zeros((M, 4)), valid=np.zeros(M, bool), options=options
    )
    crops = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(14), 40000)))
    crops = crops[np.any(crops != [0, 0, 1, 1], axis=1)]
    assert abs(len(crops) / 40000 - 0.5) < 4 * 0.5 / np.sqrt(40000)
    for actual, expected in zip(crops.T, ssd_samples(np.random.default_rng(5), 40000), strict=True):
        assert same_distribution(actual, expected)
    top, left, bottom, right = crops.T
    height, width = bottom - top, right - left
    assert top.min() >= 0 and left.min() >= 0 and crops.max() <= 1 + 1e-6
    assert np.all((height * width > 0.3**2 - 1e-5) & (width / height < 2 + 1e-4))
    assert np.all(width / height > 0.5 - 1e-4)


def test_expansion_is_uniform_and_contains_the_image():
    options = dataclasses.replace(DEFAULT, crop=False, expand_probability=1.0)
    size = np.array([3000, 2000], np.int32)
    draw = functools.partial(
        aug.draw_window,
        size=size,
        boxes=np.zeros((M, 4)),
        labels=np.zeros(M, np.int32),
        options=options,
    )
    windows = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(15), 20000))
    top, left, height, width = np.stack(windows).astype(np.float64)
    assert np.all((top <= 0) & (top + height >= 3000) & (left <= 0) & (left + width >= 2000))
    assert np.abs(height / 3000 - width / 2000).max() <= 1 / 2000  # one ratio, truncated
    uniform = np.random.default_rng(5).random((3, 20000))
    room = height > 1.01 * 3000
    assert same_distribution(height / 3000, 1 + 3 * uniform[0])
    assert same_distribution((-top / (height - 3000 + 1e-9))[room], uniform[1])
    assert same_distribution((-left / (width - 2000 + 1e-9))[room], uniform[2])


def test_windows_are_inside_the_expanded_image():
    windows = draw_many_windows(7, 20000, np.zeros((0, 4)))
    top, left, height, width = windows.T
    assert np.all((height >= 1) & (width >= 1))
    assert np.all((top > -4 * 375) & (top + height <= 4 * 375))
    assert np.all((left > -4 * 500) & (left + width <= 4 * 500))


def test_without_boxes_only_full_images_and_free_crops_occur():
    windows = draw_many_windows(8, 20000, np.zeros((0, 4)))
    whole = np.all(windows == [0, 0, 375, 500], axis=1)
    # Half of the full images are expanded; a free sample is never the full image.
    assert abs(whole.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 20000)
