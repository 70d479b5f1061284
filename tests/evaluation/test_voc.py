"""VOC average precision against slow loops, and the devkit's files."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation import formats, voc
from scratchdet_jax.evaluation.detections import ImageDetections, ImageGroundTruth
from scratchdet_jax.tools.score import read_voc_files

CLASSES = ("cat", "dog", "bird")
NOTHING = ImageDetections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))


def devkit(detections, ground_truth, class_names, iou_threshold, metric):
    """A transcription of VOCevaldet as plain loops."""
    result = {}
    for label, name in enumerate(class_names, start=1):
        boxes, difficult, taken, positives = {}, {}, {}, 0
        for image_id, truth in ground_truth.items():
            own = [i for i in range(len(truth.labels)) if truth.labels[i] == label]
            boxes[image_id] = [truth.boxes_pixels[i] for i in own]
            difficult[image_id] = [bool(truth.ignore[i]) for i in own]
            taken[image_id] = [False] * len(own)
            positives += sum(not flag for flag in difficult[image_id])
        if positives == 0:
            result[name] = None
            continue
        rows = []
        for image_id in ground_truth:
            found = detections.get(image_id, NOTHING)
            for i in range(len(found.labels)):
                if found.labels[i] == label:
                    rows.append((image_id, found.scores[i], found.boxes_pixels[i]))
        rows.sort(key=lambda row: -row[1])  # Python's sort is stable
        hits, misses, recall, precision = 0, 0, [], []
        for image_id, _, box in rows:
            largest, at = -np.inf, None
            for j, other in enumerate(boxes[image_id]):
                height = min(box[2], other[2]) - max(box[0], other[0]) + 1
                width = min(box[3], other[3]) - max(box[1], other[1]) + 1
                if height > 0 and width > 0:
                    union = (
                        (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
                        + (other[2] - other[0] + 1) * (other[3] - other[1] + 1)
                        - height * width
                    )
                    if height * width / union > largest:
                        largest, at = height * width / union, j
            if largest >= iou_threshold:
                if not difficult[image_id][at]:
                    if not taken[image_id][at]:
                        hits += 1
                        taken[image_id][at] = True
                    else:
                        misses += 1
            else:
                misses += 1
            recall.append(hits / positives)
            precision.append(hits / (hits + misses) if hits + misses else 0.0)
        result[name] = slow_average_precision(recall, precision, metric)
    return result


def slow_average_precision(recall, precision, metric):
    if metric == "11point":
        total = 0.0
        for threshold in np.arange(0.0, 1.1, 0.1):  # as in the reference evaluators
            total += max(
                (p for r, p in zip(recall, precision, strict=True) if r >= threshold), default=0.0
            )
        return total / 11
    recall, precision = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum(
        (recall[i] - recall[i - 1]) * precision[i]
        for i in range(1, len(recall))
        if recall[i] != recall[i - 1]
    )


def boxes(rng, count):
    """Boxes on a coarse grid, some negative, so that equal boxes and equal overlaps are common."""
    corner = rng.integers(-2, 6, (count, 2)) * 5
    side = rng.integers(1, 4, (count, 2)) * 5
    return np.concatenate([corner, corner + side - 1], axis=1).astype(np.float64)


def random_split(seed, images=4, most=6):
    rng = np.random.default_rng(seed)
    ground_truth, detections = {}, {}
    for i in range(images):
        n, k = rng.integers(0, most, 2)
        ground_truth[f"im{i}"] = ImageGroundTruth(
            boxes(rng, n), rng.integers(0, 3, n), rng.random(n) < 0.3
        )
        if rng.random() < 0.8:
            near = boxes(rng, k)
            if n:
                copied = rng.random(k) < 0.6
                near[copied] = ground_truth[f"im{i}"].boxes_pixels[rng.integers(0, n, k)][copied]
            scores = rng.integers(1, 5, k) / 4  # ties
            detections[f"im{i}"] = ImageDetections(near, scores, rng.integers(0, 4, k))
    return detections, ground_truth


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from(["11point", "area"]), st.sampled_from([0.3, 0.5, 1])
)
def test_evaluate_agrees_with_the_devkit_loop(seed, metric, threshold):
    detections, ground_truth = random_split(seed)
    result = voc.evaluate(detections, ground_truth, CLASSES, iou_threshold=threshold, metric=metric)
    expected = devkit(detections, ground_truth, CLASSES, threshold, metric)
    assert result.per_class == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), max_size=15),
    st.sampled_from(["11point", "area"]),
)
def test_average_precision_agrees_with_the_loop(events, metric):
    hits = np.cumsum([hit for hit, _ in events])
    recall = hits / 10
    precision = hits / np.arange(1, len(events) + 1) if events else np.zeros(0)
    assert voc.average_precision(recall, precision, metric) == pytest.approx(
        slow_average_precision(recall, precision, metric)
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_curves_are_those_of_the_ap(seed):
    (detections, ground_truth), names = random_split(seed), ["a", "b", "c"]
    expected = voc.evaluate(detections, ground_truth, names, metric="area").per_class
    for name, curve in voc.curves(detections, ground_truth, names).items():
        if curve is None:
            assert expected[name] is None
            continue
        assert voc.average_precision(*curve, "area") == expected[name]
        best = voc.best_precision(curve, np.array([0.0, 0.5, 2.0]))
        slow = [max(curve.precision[curve.recall >= r], default=0.0) for r in (0.0, 0.5, 2.0)]
        np.testing.assert_array_equal(best, slow)


def truth_of(*rows):
    return ImageGroundTruth(
        np.array([row[0] for row in rows], float).reshape(-1, 4),
        np.array([row[1] for row in rows], int),
        np.array([row[2] for row in rows], bool),
    )


def found_of(*rows):
    return ImageDetections(
        np.array([row[0] for row in rows], float).reshape(-1, 4),
        np.array([row[1] for row in rows], float),
        np.array([row[2] for row in rows], int),
    )


BOX, FAR = (0, 0, 9, 9), (50, 50, 59, 59)


def ap(detections, ground_truth, metric="area"):
    return voc.evaluate({"a": detections}, {"a": ground_truth}, CLASSES, metric=metric).per_class[
        "cat"
    ]


def test_a_duplicate_is_a_false_positive():
    truth = truth_of((BOX, 1, False), (FAR, 1, False))
    found = found_of((BOX, 0.9, 1), (BOX, 0.8, 1), (FAR, 0.7, 1))
    assert ap(found, truth) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_a_difficult_object_is_neither_hit_nor_miss():
    found = found_of((FAR, 0.9, 1), (FAR, 0.8, 1), (BOX, 0.7, 1))
    assert ap(found, truth_of((BOX, 1, False), (FAR, 1, True))) == 1.0
    assert ap(found, truth_of((BOX, 1, False))) == pytest.approx(1 / 3)


def test_the_first_of_equally_overlapping_ground_truths_is_matched():
    found = found_of((BOX, 0.9, 1))
    assert ap(found, truth_of((BOX, 1, True), (BOX, 1, False))) == 0.0
    assert ap(found, truth_of((BOX, 1, False), (BOX, 1, True))) == 1.0


def test_the_order_of_the_detections_by_image_does_not_matter():
    ground_truth = {"a": truth_of((BOX, 1, False)), "b": truth_of(), "c": truth_of((BOX, 1, False))}
    one = {name: found_of((BOX, 0.5, 1)) for name in ("a", "b", "c")}
    other = {name: one[name] for name in ("b", "c", "a")}
    first, second = (voc.evaluate(d, ground_truth, CLASSES, metric="area") for d in (one, other))
    assert first.mean == second.mean == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_widths_count_both_ends():
    # 5 px against 10 px: the IoU (5·10)/(10·10) is one half only with inclusive ends.
    truth = truth_of((BOX, 1, False))
    assert ap(found_of(((0, 0, 9, 4), 0.9, 1)), truth) == 1.0
    assert ap(found_of(((0, 0, 9, 3.99), 0.9, 1)), truth) == 0.0


def test_a_detection_with_negative_coordinates_counts():
    assert ap(found_of(((-1, -1, 9, 9), 0.9, 1)), truth_of((BOX, 1, False))) == 1.0


@pytest.mark.parametrize(
    ("hits", "of", "points"),
    [(3, 10, 3), (144, 480, 3), (145, 480, 4), (6, 10, 6), (7, 10, 7), (2, 10, 3), (8, 10, 9)],
)
def test_a_recall_of_exactly_three_tenths_does_not_reach_the_threshold(hits, of, points):
    """3 * 0.1, 6 * 0.1 and 7 * 0.1 are larger than the doubles nearest to the decimals."""
    found = voc.average_precision(np.array([hits / of]), np.array([1.0]), "11point")
    assert found == pytest.approx(points / 11)


def test_classes_without_ground_truth_are_left_out_of_the_mean():
    ground_truth = {"a": truth_of((BOX, 1, False), (FAR, 3, True)), "b": truth_of()}
    detections = {"a": found_of((BOX, 0.9, 1), (BOX, 0.9, 2))}
    result = voc.evaluate(detections, ground_truth, CLASSES)
    assert result.mean == 1.0
    assert result.per_class == {"cat": 1.0, "dog": None, "bird": None}
    assert result.ground_truths == {"cat": 1, "dog": 0, "bird": 0}
    assert result.detections == {"cat": 1, "dog": 1, "bird": 0}


def test_no_images_and_no_detections():
    assert np.isnan(voc.evaluate({}, {}, CLASSES).mean)
    assert voc.evaluate({}, {"a": truth_of((BOX, 1, False))}, CLASSES).mean == 0.0


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        ({"other": found_of((BOX, 0.9, 1))}, "'other'"),
        ({"a": found_of((BOX, 0.9, 4))}, "label 4"),
        ({"a": found_of((BOX, float("nan"), 1))}, "not finite"),
        ({"a": found_of(((0, 0, np.inf, 1), 0.5, 1))}, "not finite"),
    ],
)
def test_bad_detections_are_named(detections, message):
    with pytest.raises(UserError, match=message):
        voc.evaluate(detections, {"a": truth_of((BOX, 1, False))}, CLASSES)


def test_empty_slots_are_ignored_even_if_not_finite():
    found = found_of((BOX, 0.9, 1), ((np.nan,) * 4, np.nan, 0))
    assert ap(found, truth_of((BOX, 1, False))) == 1.0


def test_files_round_trip(tmp_path):
    rng = np.random.default_rng(0)
    detections = {
        name: ImageDetections(
            rng.uniform(-5, 500, (7, 4)),
            rng.random(7).astype(np.float32),
            np.sort(rng.integers(1, 3, 7)),
        )
        for name in ("000001", "my photo 7")
    }
    formats.write_voc(tmp_path / "new" / "results", detections, CLASSES, "test")
    again = read_voc_files(tmp_path / "new" / "results", "test", CLASSES)
    assert sorted(again) == sorted(detections)
    for name, found in detections.items():
        np.testing.assert_allclose(again[name].boxes_pixels, found.boxes_pixels, atol=5.1e-4)
        np.testing.assert_array_equal(again[name].scores.astype(np.float32), found.scores)
        np.testing.assert_array_equal(again[name].labels, found.labels)
    assert (tmp_path / "new" / "results" / "comp4_det_test_bird.txt").read_text() == ""


def test_a_line_has_the_devkits_format(tmp_path):
    formats.write_voc(tmp_path, {"000004": found_of(((2, 1, 4, 3), 0.5, 2))}, CLASSES, "val")
    line = (tmp_path / "comp4_det_val_dog.txt").read_text()
    assert line == "000004 0.5 1.000 2.000 3.000 4.000\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("000004 0.5 1 2 3 4\n000004 0.5 1 2 3\n", "line 2.*xmin ymin"),
        ("000004 high 1 2 3 4\n", "line 1"),
        ("000004 nan 1 2 3 4\n", "line 1.*finite"),
    ],
)
def test_malformed_lines_are_named(tmp_path, text, message):
    (tmp_path / "comp4_det_val_cat.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_voc_files(tmp_path, "val", CLASSES)


def test_missing_folder_and_missing_files(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_voc_files(tmp_path / "none", "val", CLASSES)
    with pytest.raises(UserError, match="comp4_det_val_CLASS"):
        read_voc_files(tmp_path, "val", CLASSES)


ODD_NAMES = (
    *(
        "car/truck",
        "a\\b",
        "nul\0here",
        ".",
        "..",
        "../../up",
        "/",
        "%2F",
        "%",
        "100%",
        "50%25",
        "a%/",
    ),
    *(
        "Car",
        "car",
        "two words",
        "tab\there",
        "é",
        "日本" * 60,
        "日本" * 60 + "x",
        "long " * 100,
        "",
    ),
)


def test_any_class_name_gets_a_file_of_its_own_that_is_read_back(tmp_path):
    folder = tmp_path / "found"
    found = {
        f"image {label}": found_of(((label, 1, 100, 200), 0.5, label))
        for label in range(1, len(ODD_NAMES) + 1)
    }
    formats.write_voc(folder, found, ODD_NAMES, "val")
    assert len(list(folder.iterdir())) == len(ODD_NAMES) and list(tmp_path.iterdir()) == [folder]
    again = read_voc_files(folder, "val", ODD_NAMES)
    assert {name: item.labels.tolist() for name, item in again.items()} == {
        name: item.labels.tolist() for name, item in found.items()
    }


def test_escaped_names():
    assert formats.escaped("car/truck") == "car%2Ftruck" and formats.escaped("a\\b\0") == "a%5Cb%00"
    assert formats.escaped("%2F") == "%252F" and formats.escaped("a%2f") == "a%252f"
    for plain in ("car", "two words", "100%", "%", "..", "é"):
        assert formats.escaped(plain) == plain


@given(st.text(st.sampled_from("%25Ff/\\A\0\ud800é"), max_size=12))
def test_escaping_can_be_undone(name):
    assert formats.unescaped(formats.escaped(name)) == name
    assert not set(formats.escaped(name)) & set("/\\\0")


def test_a_split_as_large_as_voc07_test_takes_seconds():
    rng = np.random.default_rng(0)
    ground_truth, detections = {}, {}
    for i in range(4952):
        truth_boxes = rng.uniform(0, 250, (3, 4)) + np.array([0, 0, 250, 250])
        found_boxes = rng.uniform(0, 250, (200, 4)) + np.array([0, 0, 250, 250])
        ground_truth[str(i)] = ImageGroundTruth(
            truth_boxes, rng.integers(1, 21, 3), np.zeros(3, bool)
        )
        detections[str(i)] = ImageDetections(found_boxes, rng.random(200), rng.integers(1, 21, 200))
    start = time.perf_counter()
    voc.evaluate(detections, ground_truth, [str(i) for i in range(20)])
    assert time.perf_counter() - start < 20
