import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scratchdet_jax.detector import augment_options, build_detector
from scratchdet_jax.ops import matching
from scratchdet_jax.ops.augment import augment
from scratchdet_jax.reports.doctor import fit as fit_module
from scratchdet_jax.reports.doctor.anchors import summarize
from scratchdet_jax.reports.doctor.fit import BoxTable, fit_boxes, make_levels
from scratchdet_jax.training.step import example_keys
from tests.tiny import tiny_config

COUNTS = (3, 0, 6, 1, 4, 5, 2)


@pytest.fixture(scope="module")
def config():
    return tiny_config(**{"augment.crop": True, "augment.expand_probability": 0.5})


@pytest.fixture(scope="module")
def levels(config):
    return make_levels(config)


def make_table(counts):
    rng = np.random.default_rng(3)
    count = sum(counts)
    corner = rng.uniform(0, 0.7, (count, 2))
    side = rng.uniform(0.02, 0.5, (count, 2))
    boxes = np.concatenate([corner, np.minimum(corner + side, 1)], axis=1).astype(np.float32)
    return BoxTable(
        boxes,
        rng.integers(1, 4, count).astype(np.int32),
        rng.random(count) < 0.3,
        np.repeat(np.arange(len(counts)), counts),
        rng.integers(20, 65, (len(counts), 2)).astype(np.int32),
    )


def slow_iou(a, b):
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    if height <= 0 or width <= 0:
        return 0.0
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return height * width / (sum(areas) - height * width)


def padded(values, slots=8):
    return np.concatenate(
        [values, np.zeros((slots - len(values), *values.shape[1:]), values.dtype)]
    )


def check_fit(fit, levels, images):
    """`images`: for each image, the rows of the fit that hold its boxes, in order."""
    starts = (0, *levels.ends[:-1])
    match = jax.jit(matching.match)
    for rows in images:
        boxes = fit.boxes[rows].astype(np.float64)
        overlaps = [[slow_iou(b, a) for a in levels.anchors.tolist()] for b in boxes.tolist()]
        targets = match(levels.anchors, padded(fit.boxes[rows]), padded(fit.labels[rows]), 0.5)
        matched = np.asarray(targets.matched)
        for m, row in enumerate(rows):
            best = [max(overlaps[m][a:b]) for a, b in zip(starts, levels.ends, strict=True)]
            np.testing.assert_allclose(fit.best[row], best, atol=1e-5)
            own = np.flatnonzero(matched == m)
            assert fit.positives[row] == len(own)
            assert fit.reaching[row] == sum(overlaps[m][a] >= 0.5 for a in own)


def test_levels_match_the_detector(config, levels):
    np.testing.assert_array_equal(levels.anchors, build_detector(config, ("any",)).anchors)
    assert levels.ends[-1] == len(levels.anchors)
    sizes = (levels.anchors[:, 2:] - levels.anchors[:, :2]) * config.image_size
    for n, (start, end) in enumerate(zip((0, *levels.ends), levels.ends, strict=False)):
        np.testing.assert_allclose(sizes[start], levels.sizes[n][0], atol=1e-3)
        assert end - start == np.prod(levels.maps[n]) * (2 + 2 * len(levels.ratios[n]))


def test_the_fit_matches_loops_over_boxes_and_anchors(config, levels, monkeypatch):
    table = make_table(COUNTS)
    monkeypatch.setattr(fit_module, "_OVERLAPS_AT_A_TIME", 2 * 4 * len(levels.anchors))
    config = config.copy_and_resolve_references()
    config.data.train_on_ignored = True
    fit = fit_boxes(levels, table, config)
    np.testing.assert_array_equal(fit.boxes, table.boxes)
    np.testing.assert_array_equal(fit.source, np.arange(sum(COUNTS)))
    ends = np.cumsum(table.counts)
    images = [range(a, b) for a, b in zip(table.starts, ends, strict=True) if a < b]
    check_fit(fit, levels, images)


@pytest.mark.parametrize("keep_ignored", [True, False])
def test_augmented_boxes_match_training(config, levels, keep_ignored):
    counts = (3, 0, 1, 4, 2)  # one shape, compiled once
    table = make_table(counts)
    config = config.copy_and_resolve_references()
    config.seed, config.data.train_on_ignored = 7, keep_ignored
    options, size = augment_options(config), config.image_size
    fits = [fit_boxes(levels, table, config, draw) for draw in range(2)]
    fit = fit_module.Fit(*map(np.concatenate, zip(*fits, strict=True)))
    left = [np.bincount(table.image[f.source], minlength=len(counts)) for f in fits]
    run = jax.jit(lambda key, *example: augment(key, *example, options, size))
    rng = np.random.default_rng(0)
    found = {}
    for row in range(len(fit.labels)):
        found.setdefault(int(fit.source[row]), []).append(row)
    expected = 0
    for draw in range(2):
        for image, count in enumerate(counts):
            own = slice(table.starts[image], table.starts[image] + count)
            slots = [padded(values[own]) for values in table[:3]]
            pixels = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
            key = example_keys(7, draw, jnp.array([image]))[0]
            _, boxes, labels, ignore = run(key, pixels, table.sizes[image], *slots)
            kept = np.asarray(labels)[:count] > 0
            if not keep_ignored:
                kept &= ~np.asarray(ignore)[:count]
            assert left[draw][image] == kept.sum()
            expected += kept.sum()
            for slot in np.flatnonzero(kept):
                rows = found[int(table.starts[image]) + slot]
                near = [np.allclose(fit.boxes[r], boxes[slot], atol=1e-6) for r in rows]
                assert sum(near) >= 1
                assert all(fit.labels[r] == labels[slot] for r in rows)
    assert len(fit.labels) == expected
    assert 0 < expected < 2 * sum(counts)  # some are lost


def test_no_boxes(config, levels):
    empty = BoxTable(
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.int32),
        np.zeros(0, bool),
        np.zeros(0, np.int64),
        np.full((3, 2), 64, np.int32),
    )
    fit = fit_boxes(levels, empty, config, draw=0)
    assert summarize(fit, 0.5, 2)["count"] == 0
    assert np.isnan(summarize(fit, 0.5, 2)["reached"])
