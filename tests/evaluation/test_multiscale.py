"""Multi-scale testing: parsing, anchors at other sizes, and merging against a slow loop."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchdet_jax.config.scales import Scale, parse_scales
from scratchdet_jax.data.builders import shapes
from scratchdet_jax.data.records import open_source
from scratchdet_jax.data.sources import open_split
from scratchdet_jax.detector import build_detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation.evaluator import Evaluator
from scratchdet_jax.evaluation.multiscale import (
    anchors_at,
    make_scale_step,
    merge_image,
    merge_scales,
)
from scratchdet_jax.models import feature_sizes
from scratchdet_jax.ops.nms import Detections
from scratchdet_jax.parallel.devices import DeviceMapping
from tests.tiny import random_variables, tiny_config


def test_entries_are_parsed():
    assert parse_scales(()) == ()
    assert parse_scales((300,)) == (Scale(300),)
    expected = (Scale(300), Scale(300, True), Scale(512, True, "small"), Scale(192, False, "large"))
    assert parse_scales(("300", "300f", "512f:small", "192:large")) == expected
    assert parse_scales(("300+300f+512f:small+192:large",)) == expected


@pytest.mark.parametrize("entry", ["", "f", "300ff", "300:tiny", "-300", "0", 300.5, "300,512"])
def test_a_bad_entry_is_named(entry):
    with pytest.raises(UserError, match=r"config\.eval\.multiscale has the entry"):
        parse_scales((300, entry))


def test_a_repeated_entry_is_refused():
    with pytest.raises(UserError, match="twice"):
        parse_scales((300, "300"))


def test_steps_follow_the_network_or_the_size():
    config = tiny_config(image_size=300)
    with config.unlocked():
        config.anchors.steps = (8, 16, 32, 64, 100, 150)
    detector = build_detector(config, ("a", "b"))
    assert anchors_at(detector, 300, 300) is detector.anchors
    anchors = anchors_at(detector, 512, 512)  # maps 64, 32, 16, 8, 4, 2; two anchors per cell
    centres = (anchors[:, :2] + anchors[:, 2:])[::2] / 2 * 512
    first, sixth = centres[:64], centres[-4:]
    np.testing.assert_allclose(first[:, 1], (np.arange(64) + 0.5) * 8, rtol=1e-4)
    np.testing.assert_allclose(sixth[:2, 1], [128, 384], rtol=1e-4)  # 150 of 300 → 256 of 512
    sides = (anchors[:2, 2:] - anchors[:2, :2]) * 512
    smallest = config.anchors.min_percent[0]
    np.testing.assert_allclose(sides[0], int(300 * smallest / 100), rtol=1e-4)


def slow_anchors(config, maps, height, width):
    """Square anchors of the trained sizes in pixels, over an input of height × width pixels."""
    result = []
    for level, (rows, columns) in enumerate(maps):
        low = int(config.image_size * config.anchors.min_percent[level] / 100)
        high = int(config.image_size * config.anchors.max_percent[level] / 100)
        for i in range(rows):
            for j in range(columns):
                y, x = (i + 0.5) * height / rows, (j + 0.5) * width / columns
                for side in (low, (low * high) ** 0.5):
                    top, left, half = y / height, x / width, side / 2
                    result.append(
                        (
                            top - half / height,
                            left - half / width,
                            top + half / height,
                            left + half / width,
                        )
                    )
    return np.float32(result)


@pytest.mark.parametrize("shape", [(64, 64), (40, 64), (64, 40), (96, 96), (32, 152)])
def test_anchors_keep_their_sides_in_pixels_on_any_rectangle(shape):
    config = tiny_config()
    detector = build_detector(config, ("a",))
    maps = feature_sizes(detector.model, shape)
    assert maps[0] == (shape[0] // 8, shape[1] // 8)
    expected = slow_anchors(config, maps, *shape)
    np.testing.assert_allclose(anchors_at(detector, *shape), expected, atol=1e-6)


def test_a_size_too_small_for_the_anchors_is_named():
    config = tiny_config()
    detector = build_detector(config, ("a",))
    with pytest.raises(UserError, match=r"multiscale: size 1x64 cannot be used: 1 x 64 pixels are"):
        anchors_at(detector, 1, 64)


def slow_iou(a, b):
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    if height <= 0 or width <= 0:
        return 0.0
    common = height * width
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def slow_merge(found, origin, threshold, vote, slots):
    """Repeatedly takes the best remaining detection."""
    rest = sorted(
        (i for i in range(len(origin)) if found.labels[i] > 0), key=lambda i: -found.scores[i]
    )
    result = []
    while rest:
        best, members = rest.pop(0), []
        box = found.boxes[best].astype(float)
        for i in list(rest):
            same = found.labels[i] == found.labels[best] and origin[i] != origin[best]
            if same and slow_iou(found.boxes[i].astype(float), box) > threshold:
                members.append(i)
                rest.remove(i)
        if vote and members:
            total, weight = np.zeros(4), 0.0
            for i in [best, *members]:
                total += found.boxes[i].astype(float) * float(found.scores[i])
                weight += float(found.scores[i])
            box = total / weight
        result.append((box, found.scores[best], found.labels[best]))
    return result[:slots]


@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.booleans(), st.sampled_from([0.3, 0.45]))
@settings(deadline=None, max_examples=150)
def test_merging_equals_a_slow_loop(seed, count, vote, threshold):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.4, (count, 2)).round(1)
    boxes = np.concatenate([low, low + rng.choice([0.2, 0.3, 0.5], (count, 2))], 1)
    boxes = (boxes + rng.uniform(0, 0.02, boxes.shape)).astype(np.float32)
    scores = rng.uniform(0.01, 1, count).round(1 + seed % 3).clip(0.01).astype(np.float32)
    labels = rng.integers(0, 3, count).astype(np.int32)
    origin = rng.integers(0, 3, count)
    found = Detections(boxes, scores, labels)
    merged = merge_image(found, origin, iou_threshold=threshold, vote=vote, max_detections=15)
    expected = slow_merge(found, origin, threshold, vote, 15)
    assert merged.boxes.shape == (15, 4)
    assert (merged.labels > 0).sum() == len(expected)
    for i, (box, score, label) in enumerate(expected):
        np.testing.assert_allclose(merged.boxes[i], box, atol=1e-6)
        assert (merged.scores[i], merged.labels[i]) == (score, label)
    assert not merged.scores[len(expected) :].any()
    assert not merged.boxes[len(expected) :].any()


def test_scales_keep_small_or_large_objects_in_original_pixels():
    config = tiny_config()
    boxes = np.float32([[[0, 0, 0.1, 0.1], [0, 0, 0.5, 0.9], [0.5, 0.5, 0.55, 1.0]]])
    found = Detections(boxes, np.float32([[0.9, 0.8, 0.7]]), np.int32([[1, 1, 1]]))
    sizes = np.array([[300, 400]])  # sides 30 × 40, 150 × 360, 15 × 200 pixels
    kept = {}
    for keep in ("", "small", "large"):
        merged = merge_scales([found], [Scale(64, False, keep)], sizes, config.eval)
        kept[keep] = merged.scores[0][merged.labels[0] > 0].tolist()
    assert kept[""] == pytest.approx([0.9, 0.8, 0.7])
    assert kept["small"] == pytest.approx([0.9, 0.7])
    assert kept["large"] == pytest.approx([0.9, 0.8, 0.7])
    with config.unlocked():
        config.eval.multiscale_large = 100.0
    merged = merge_scales([found], [Scale(64, False, "large")], sizes, config.eval)
    assert merged.scores[0][:2].tolist() == pytest.approx([0.8, 0.7])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A random detector at 64 px, its variables, and a batch of two images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "SPLIT_SIZES", {"train": 1, "validation": 12})
        open_source("shapes:validation", tmp_path_factory.getbasetemp() / "multiscale")
    config = tiny_config(
        **{
            "data.dir": str(tmp_path_factory.getbasetemp() / "multiscale"),
            "data.eval": "shapes:validation",
            "data.threads": 1,
            "data.max_boxes": 16,
            "normalize.std": (60.0, 60.0, 60.0),  # keeps the predictions of random weights moderate
        }
    )
    detector = build_detector(config, open_split(config.data, "eval").class_names)
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (2, 64, 64, 3), np.uint8)
    variables = random_variables(detector, 64, rng)
    batch = {"image": images, "size": np.int32([[64, 64]] * 2)}
    return config, detector, variables, batch


@pytest.mark.parametrize("merge", ["nms", "vote"])
def test_merging_a_single_scale_changes_nothing(small, merge):
    config, detector, variables, batch = small
    with config.unlocked():
        config.eval.multiscale_merge = merge
    step = jax.jit(make_scale_step(detector, Scale(64)))
    plain = jax.device_get(step(variables, batch))
    assert (plain.labels > 0).sum() > 20
    merged = merge_scales([plain], [Scale(64)], np.array([[64, 64]] * 2), config.eval)
    jax.tree.map(np.testing.assert_array_equal, merged, plain)


def test_a_flipped_scale_of_a_flipped_image_mirrors_the_detections(small):
    _, detector, variables, batch = small
    plain = jax.jit(make_scale_step(detector, Scale(64)))(variables, batch)
    flipped = batch | {"image": batch["image"][:, :, ::-1].copy()}
    turned = jax.jit(make_scale_step(detector, Scale(64, True)))(variables, flipped)
    used = np.asarray(plain.labels) > 0
    expected = np.asarray(plain.boxes)[..., [0, 3, 2, 1]]
    expected = np.where([False, True, False, True], 1 - expected, expected)
    np.testing.assert_array_equal(turned.labels, plain.labels)
    np.testing.assert_allclose(turned.scores, plain.scores, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(turned.boxes)[used], expected[used], atol=1e-5)


def test_evaluating_one_scale_equals_plain_evaluation(small):
    config, detector, variables, _ = small
    mapping = DeviceMapping("shard_map", jax.devices()[:1])
    source = open_split(config.data, "eval")

    def evaluate(*scales):
        with config.unlocked():
            config.eval.multiscale = scales
        return Evaluator(detector, mapping, source).evaluate(mapping.replicate(variables))

    plain, one, several = evaluate(), evaluate("64"), evaluate("64f+96:small")
    assert sum(len(d.labels) for d in plain.detections.values()) > 20
    assert one.results == plain.results
    jax.tree.map(np.testing.assert_array_equal, one.detections, plain.detections)
    assert several.detections.keys() == plain.detections.keys()
    assert sum(len(d.labels) for d in several.detections.values()) > 20
