"""Multi-scale testing: parsing, anchors at other sizes, and the whole protocol in slow loops."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchdet_jax.config.scales import Scale, parse_scales
from scratchdet_jax.config.validation import validate
from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.data.sources import open_split
from scratchdet_jax.datasets import shapes
from scratchdet_jax.detector import build_detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation.evaluator import Evaluator, map_eval_steps
from scratchdet_jax.evaluation.multiscale import (
    anchors_at,
    make_scale_step,
    merge_scales,
    mirror,
    suppress,
)
from scratchdet_jax.models.ssd import feature_sizes
from scratchdet_jax.ops.boxes import decode
from scratchdet_jax.ops.nms import Detections, select_detections
from scratchdet_jax.parallel.devices import DeviceMapping
from tests.plain import FIELDS, plain_backbone
from tests.tiny import random_variables, tiny_config


def test_entries_are_parsed():
    assert parse_scales(()) == ()
    assert parse_scales((300,)) == (Scale(300, 300),)
    expected = (
        Scale(300, 300),
        Scale(300, 300, True),
        Scale(512, 512, True, "small"),
        Scale(192, 192, False, "large"),
        Scale(180, 300, True, "wide"),
        Scale(300, 180, False, "tall"),
        Scale(512, 512, True, "below", 64),
        Scale(192, 320, False, "above", 32),
    )
    entries = (
        "300 300f 512f:small 192:large 180x300f:wide 300x180:tall 512f:below64 192x320:above32"
    )
    assert parse_scales(entries.split()) == expected
    assert parse_scales(("+".join(entries.split()),)) == expected


def test_the_preset_is_the_table_of_refinedet():
    table = [  # times the size, and the side of the boxes that are kept, in original pixels
        (1.0, "", 0),
        (0.6, "above", 32),
        (1.2, "below", 160),
        (1.4, "below", 128),
        (1.6, "below", 96),
        (1.8, "below", 64),
        (2.2, "below", 32),
    ]
    scales = {Scale(int(300 * t), int(300 * t), f, *k) for t, *k in table for f in (False, True)}
    for flip in (False, True):  # one pass with the long side at 1.0 and the short one at 0.6
        scales |= {Scale(180, 300, flip, "wide"), Scale(300, 180, flip, "tall")}
    assert len(parse_scales(("refinedet300",))) == 18
    assert set(parse_scales(("refinedet300",))) == scales
    scales |= {Scale(600, 600, flip, "below", 48) for flip in (False, True)}
    assert set(parse_scales(("refinedet300_coco",))) == scales


@pytest.mark.parametrize(
    ("recipe", "fields", "message"),
    [
        (300, {}, None),
        (64, {}, r"refinedet300 is for config\.image_size 300 .*, and the run has 64"),
        (
            300,
            {"eval.multiscale_merge": "soft_vote"},
            r"merges by vote, and the run has .* 'soft_vote'",
        ),
        (
            300,
            {"eval.multiscale_merge": "soft"},
            r"multiscale_merge is 'soft'.*nms, vote, soft_vote",
        ),
    ],
)
def test_a_preset_that_does_not_suit_the_run_is_refused(recipe, fields, message):
    config = tiny_config(image_size=recipe, **fields)
    with config.unlocked():
        config.eval.multiscale = ("refinedet300",)
    if message is None:
        validate(config, device_count=1)
        return
    with pytest.raises(UserError, match=message):
        validate(config, device_count=1)


@pytest.mark.parametrize(
    "entry",
    [
        *("", "f", "300ff", "300:tiny", "-300", "0", 300.5, "300,512", "300x", "x300", "300x0"),
        *("300:below", "300:above0", "300:wide:below9", "300:small9", "refinedet512"),
        "refinedet300+400",
    ],
)
def test_a_bad_entry_is_named(entry):
    with pytest.raises(UserError, match=r"config\.eval\.multiscale has the entry"):
        parse_scales((300, entry))


def test_a_repeated_entry_is_refused():
    with pytest.raises(UserError, match="twice"):
        parse_scales((300, "300"))
    with pytest.raises(UserError, match="twice"):
        parse_scales(("300+300x300",))


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
    with pytest.raises(UserError, match="size 1x64 cannot be used: an input of 1 x 64"):
        anchors_at(detector, 1, 64)


def slow_iou(a, b):
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    if height <= 0 or width <= 0:
        return 0.0
    common = height * width
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def slow_suppress(found, origin, threshold, slots):
    """Repeatedly takes the best remaining detection."""
    rest = sorted(
        (i for i in range(len(origin)) if found.labels[i] > 0), key=lambda i: -found.scores[i]
    )
    result = []
    while rest:
        best = rest.pop(0)
        box = found.boxes[best].astype(float)
        for i in list(rest):
            same = found.labels[i] == found.labels[best] and origin[i] != origin[best]
            if same and slow_iou(found.boxes[i].astype(float), box) > threshold:
                rest.remove(i)
        result.append((box, found.scores[best], found.labels[best]))
    return result[:slots]


@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.sampled_from([0.3, 0.45]))
@settings(deadline=None, max_examples=100)
def test_suppression_equals_a_slow_loop(seed, count, threshold):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.4, (count, 2)).round(1)
    boxes = np.concatenate([low, low + rng.choice([0.2, 0.3, 0.5], (count, 2))], 1)
    boxes = (boxes + rng.uniform(0, 0.02, boxes.shape)).astype(np.float32)
    scores = rng.uniform(0.01, 1, count).round(1 + seed % 3).clip(0.01).astype(np.float32)
    labels = rng.integers(0, 3, count).astype(np.int32)
    origin = rng.integers(0, 3, count)
    found = Detections(boxes, scores, labels)
    merged = suppress(found, origin, threshold, max_detections=15)
    expected = slow_suppress(found, origin, threshold, 15)
    assert merged.boxes.shape == (15, 4)
    assert (merged.labels > 0).sum() == len(expected)
    for i, (box, score, label) in enumerate(expected):
        np.testing.assert_allclose(merged.boxes[i], box, atol=1e-6)
        assert (merged.scores[i], merged.labels[i]) == (score, label)
    assert not merged.scores[len(expected) :].any()
    assert not merged.boxes[len(expected) :].any()


def inclusive_iou(a, b):
    """IoU of boxes (xmin, ymin, xmax, ymax) in pixels whose ends are the last pixels inside."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    area_a = (a[2] - a[0] + 1) * (a[3] - a[1] + 1)
    area_b = (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
    return width * height / (area_a + area_b - width * height)


def slow_protocol(raw, scales, height, width, soft, threshold, slots):
    """RefineDet's test of one image, after the network, one detection at a time.

    `raw` holds the detections (box, score, label) of each scale as the network saw its input: with
    fractions (ymin, xmin, ymax, xmax) of an input that may be mirrored.
    """
    pool = []
    for scale, detections in zip(scales, raw, strict=True):
        for (ymin, xmin, ymax, xmax), score, label in detections:
            if scale.flip:
                xmin, xmax = 1 - xmax, 1 - xmin
            box = (xmin * width, ymin * height, xmax * width, ymax * height)
            sides = (box[2] - box[0] + 1, box[3] - box[1] + 1)
            if scale.keep == "above" and not max(sides) > scale.limit:
                continue
            if scale.keep == "below" and not min(sides) < scale.limit:
                continue
            if scale.keep == "wide" and not height < width:
                continue
            if scale.keep == "tall" and height < width:
                continue
            pool.append((box, score, label))
    result = []
    for label in sorted({one[2] for one in pool}):
        rest = sorted((one for one in pool if one[2] == label), key=lambda one: -one[1])
        while rest:
            best, group, others = rest[0], [], []
            for one in rest:
                meets = inclusive_iou(best[0], one[0]) >= threshold
                (group if meets else others).append(one)
            rest = others
            weight = sum(score for _, score, _ in group)
            box = [sum(box[k] * score for box, score, _ in group) / weight for k in range(4)]
            result.append((box, best[1], label))
            for box, score, _ in group if soft else ():
                score *= 1 - inclusive_iou(best[0], box)
                if score >= 0.01:
                    result.append((box, score, label))
    return sorted(result, key=lambda one: -one[1])[:slots]


def assert_merged(merged, row, expected, height, width, tolerance):
    used = merged.labels[row] > 0
    assert used.sum() == len(expected)
    assert not merged.scores[row][~used].any() and not merged.boxes[row][~used].any()
    assert (np.diff(merged.scores[row]) <= 0).all()
    for i, (box, score, label) in enumerate(expected):
        assert merged.labels[row][i] == label
        assert merged.scores[row][i] == pytest.approx(score, abs=tolerance)
        found = merged.boxes[row][i] * [height, width, height, width]
        np.testing.assert_allclose(
            found, [box[1], box[0], box[3], box[2]], atol=max(height, width) * tolerance
        )


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["refinedet300", "refinedet300_coco"]),
    st.sampled_from([(375, 500), (500, 375), (300, 300), (90, 41)]),
    st.sampled_from([0.3, 0.45]),
    st.sampled_from([7, 150]),
)
@settings(deadline=None, max_examples=100)
def test_the_preset_equals_refinedets_test_in_slow_loops(seed, preset, size, threshold, slots):
    rng = np.random.default_rng(seed)
    scales = parse_scales((preset,))
    config = tiny_config(
        **{"eval.max_detections": slots, "eval.nms_iou": threshold, "eval.score_threshold": 0.01}
    )
    with config.unlocked():
        config.eval.multiscale = (preset,)
    places = rng.uniform(0, 0.5, (4, 2))  # detections gather at four places, so that many overlap
    sides = rng.choice([0.05, 0.1, 0.3, 0.5], (4, 2))
    raw, found = [], []
    for scale in scales:
        count = rng.integers(0, 7)
        near = rng.integers(0, 4, 6)
        low = (places[near] + rng.normal(0, 0.02, (6, 2))).clip(0, 0.9)
        high = (low + sides[near] * rng.uniform(0.7, 1.4, (6, 2))).clip(0, 1)
        boxes = np.float32(np.concatenate([low, high], 1))
        if scale.flip:
            boxes = np.float32(1) - boxes[:, [2, 3, 0, 1]]
            boxes[:, [0, 2]] = np.float32(1) - boxes[:, [2, 0]]
        scores = rng.uniform(0.01, 1, 6).astype(np.float32)
        labels = np.where(np.arange(6) < count, rng.integers(1, 4, 6), 0).astype(np.int32)
        one = Detections(np.where(labels[:, None] > 0, boxes, 0)[None], scores[None], labels[None])
        found.append(jax.device_get(mirror(one)) if scale.flip else one)
        raw.append(
            [
                (boxes[i].astype(float), float(scores[i]), int(labels[i]))
                for i in range(6)
                if labels[i]
            ]
        )
    merged = merge_scales(found, scales, np.array([size]), config.eval)
    soft = preset == "refinedet300_coco"
    expected = slow_protocol(raw, scales, *size, soft, threshold, slots)
    assert merged.boxes.shape == (1, slots, 4)
    assert_merged(merged, 0, expected, *size, 1e-5)


def test_voting_replaces_by_the_mean_and_soft_voting_keeps_the_rest():
    """Three boxes of 10 × 20 pixels, each moved by one; the first two are of the same scale."""
    config = tiny_config(**{"eval.max_detections": 4})
    boxes = np.float32([[0, 0, 10, 20], [1, 0, 11, 20], [2, 0, 12, 20]]) / 100
    one = Detections(boxes[None, :2], np.float32([[0.6, 0.3]]), np.int32([[1, 1]]))
    two = Detections(boxes[None, 2:], np.float32([[0.1]]), np.int32([[1]]))
    results = {}
    for method in ("nms", "vote", "soft_vote"):
        with config.unlocked():
            config.eval.multiscale_merge = method
        scales = parse_scales(("64+64f",))
        results[method] = merge_scales([one, two], scales, np.array([[100, 100]]), config.eval)
    assert results["nms"].scores[0] == pytest.approx([0.6, 0.3, 0, 0])
    for method in ("vote", "soft_vote"):
        np.testing.assert_allclose(results[method].boxes[0, 0] * 100, [0.5, 0, 10.5, 20], atol=1e-5)
    assert results["vote"].scores[0] == pytest.approx([0.6, 0, 0, 0])
    # IoU with whole pixels: 10 of 12 rows, 9 of 13
    softened = [0.6, 0.3 * (1 - 10 / 12), 0.1 * (1 - 9 / 13), 0]
    assert results["soft_vote"].scores[0] == pytest.approx(softened)
    np.testing.assert_array_equal(results["soft_vote"].boxes[0, 1:3], boxes[1:])


def test_scales_keep_small_or_large_objects_in_original_pixels():
    config = tiny_config()
    boxes = np.float32([[[0, 0, 0.1, 0.1], [0, 0, 0.5, 0.9], [0.5, 0.5, 0.55, 1.0]]])
    found = Detections(boxes, np.float32([[0.9, 0.8, 0.7]]), np.int32([[1, 1, 1]]))
    sizes = np.array([[300, 400]])  # sides 31 × 41, 151 × 361, 16 × 201, both ends counted
    kept = {}
    for keep in ("", "small", "large"):
        merged = merge_scales([found], [Scale(64, 64, False, keep)], sizes, config.eval)
        kept[keep] = merged.scores[0][merged.labels[0] > 0].tolist()
    assert kept[""] == pytest.approx([0.9, 0.8, 0.7])
    assert kept["small"] == pytest.approx([0.9, 0.7])
    assert kept["large"] == pytest.approx([0.9, 0.8, 0.7])
    with config.unlocked():
        config.eval.multiscale_large = 100.0
    merged = merge_scales([found], [Scale(64, 64, False, "large")], sizes, config.eval)
    assert merged.scores[0][:2].tolist() == pytest.approx([0.8, 0.7])
    for entry, expected in {
        "64:below31": [0.7],
        "64:below32": [0.9, 0.7],
        "64:above201": [0.8],
        "64:above200": [0.8, 0.7],
        "64:wide": [0.9, 0.8, 0.7],
        "64:tall": [],
    }.items():
        merged = merge_scales([found], parse_scales((entry,)), sizes, config.eval)
        assert merged.scores[0][merged.labels[0] > 0].tolist() == pytest.approx(expected), entry


@pytest.fixture(scope="module", params=["plain", pytest.param("resnet", marks=pytest.mark.slow)])
def network(request):
    """The fields of a config with one of the networks, which is known during the tests."""
    with plain_backbone():
        yield FIELDS if request.param == "plain" else {}


@pytest.fixture(scope="module")
def small(network, tmp_path_factory):
    """A random detector at 64 px, its variables, and a batch of two images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "SPLIT_SIZES", {"train": 1, "validation": 12})
        DetectionSource("shapes:validation", tmp_path_factory.getbasetemp() / "multiscale")
    config = tiny_config(
        **network
        | {
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
    variables = random_variables(detector.model, 64, rng)
    batch = {"image": images, "size": np.int32([[64, 64]] * 2)}
    return config, detector, variables, batch


def test_suppressing_a_single_scale_changes_nothing(small):
    config, detector, variables, batch = small
    step = jax.jit(make_scale_step(detector, Scale(64, 64)))
    plain = jax.device_get(step(variables, batch))
    assert (plain.labels > 0).sum() > 20
    merged = merge_scales([plain], [Scale(64, 64)], np.array([[64, 64]] * 2), config.eval)
    jax.tree.map(np.testing.assert_array_equal, merged, plain)


def test_a_flipped_scale_of_a_flipped_image_mirrors_the_detections(small):
    _, detector, variables, batch = small
    plain = jax.jit(make_scale_step(detector, Scale(64, 64)))(variables, batch)
    flipped = batch | {"image": batch["image"][:, :, ::-1].copy()}
    turned = jax.jit(make_scale_step(detector, Scale(64, 64, True)))(variables, flipped)
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


def test_any_number_of_devices_takes_any_batch(small):
    config, detector, variables, _ = small
    source = open_split(config.data, "eval")

    def evaluate(devices, batch_size):
        with config.unlocked():
            config.eval.multiscale, config.eval.batch_size = (), batch_size
        mapping = DeviceMapping("shard_map", jax.devices()[:devices])
        return Evaluator(detector, mapping, source).evaluate(mapping.replicate(variables))

    one, three = evaluate(1, 8), evaluate(3, 5)  # batches of 6
    assert three.results["mAP"] == pytest.approx(one.results["mAP"], abs=1e-3)
    assert three.detections.keys() == one.detections.keys()
    for image_id, expected in one.detections.items():
        # Another batch rounds differently, which may exchange detections of nearly equal scores.
        found = three.detections[image_id]
        orders = [np.lexsort((d.scores, d.labels)) for d in (found, expected)]
        np.testing.assert_array_equal(found.labels[orders[0]], expected.labels[orders[1]])
        np.testing.assert_allclose(found.scores[orders[0]], expected.scores[orders[1]], rtol=1e-5)


def by_hand(detector, variables, images, scale):
    """The detections of each image, resized by OpenCV, as the network saw its input."""
    config, shape = detector.config, (scale.height, scale.width)
    anchors = slow_anchors(config, feature_sizes(detector.model, shape), *shape)

    @jax.jit
    def detect(variables, pixels):
        logits, offsets = detector.model.apply(variables, pixels[None], train=False)
        return select_detections(
            decode(offsets[0], anchors),
            jax.nn.softmax(logits[0]),
            score_threshold=config.eval.score_threshold,
            iou_threshold=config.eval.nms_iou,
            candidates_per_class=config.eval.candidates_per_class,
            max_detections=config.eval.max_detections,
        )

    results = []
    for image in images:
        pixels = cv2.resize(image.astype(np.float32), shape[::-1], interpolation=cv2.INTER_LINEAR)
        pixels = (pixels - np.array(config.normalize.mean)) / np.array(config.normalize.std)
        if scale.flip:
            pixels = pixels[:, ::-1]
        found = zip(*jax.device_get(detect(variables, jnp.float32(pixels))), strict=True)
        results.append([(b.astype(float), float(s), int(label)) for b, s, label in found if label])
    return results


def test_a_rectangular_pass_equals_the_same_by_hand(small):
    _, detector, variables, batch = small
    scale = Scale(40, 64, True)
    found = jax.device_get(jax.jit(make_scale_step(detector, scale))(variables, batch))
    for row, expected in enumerate(by_hand(detector, variables, batch["image"], scale)):
        assert len(expected) > 10
        assert_merged(
            found,
            row,
            [((1 - b[3], b[0], 1 - b[1], b[2]), score, label) for b, score, label in expected],
            1,
            1,
            1e-4,
        )


@pytest.mark.slow
def test_a_whole_pass_equals_each_scale_by_hand(small):
    config, detector, variables, _ = small
    params = variables["params"]  # lower logits: scores that are not all 1
    head = jax.tree.map(lambda x: x * 0.2, params["head"])
    variables = variables | {"params": params | {"head": head}}
    entries = "64+40x64f:wide+64x40:tall+40f:above12+96f:below24"
    scales = parse_scales((entries,))
    sizes = [(48, 64), (64, 48), (64, 64), (33, 50)]
    rng = np.random.default_rng(5)
    images = np.zeros((4, 64, 64, 3), np.uint8)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:height, :width] = rng.integers(0, 256, (height, width, 3))
    batch = {"image": images, "size": np.int32(sizes)}
    with config.unlocked():
        config.eval.multiscale = (entries,)
    mapping = DeviceMapping("shard_map", jax.devices()[:1])
    on_device = mapping.put_batch({name: value[None] for name, value in batch.items()})
    replicated = mapping.replicate(variables)
    found = mapping.local_rows(
        [step(replicated, on_device) for step in map_eval_steps(detector, mapping)]
    )
    cut = [image[:height, :width] for image, (height, width) in zip(images, sizes, strict=True)]
    by_scale = [by_hand(detector, variables, cut, scale) for scale in scales]
    for row, (height, width) in enumerate(sizes):
        raw = [one[row] for one in by_scale]
        for method in ("vote", "soft_vote"):
            with config.unlocked():
                config.eval.multiscale_merge = method
            merged = merge_scales(found, scales, np.array(sizes), config.eval)
            soft, slots = method == "soft_vote", config.eval.max_detections
            expected = slow_protocol(raw, scales, height, width, soft, config.eval.nms_iou, slots)
            assert len(expected) > 10
            assert_merged(merged, row, expected, height, width, 1e-4)
