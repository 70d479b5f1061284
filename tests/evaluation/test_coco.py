"""COCO average precision against pycocotools, result files, and evaluating a run."""

import contextlib
import io
import json
import types

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from scratchdet_jax.data import coco_classes
from scratchdet_jax.datasets.coco_json import read_coco
from scratchdet_jax.datasets.coco_scan import read_ground_truth
from scratchdet_jax.datasets.folders import CocoSplit, prepare_coco_folder
from scratchdet_jax.datasets.objects import Kind
from scratchdet_jax.detector import Detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation import coco, formats, saved_run
from scratchdet_jax.evaluation.detections import ImageDetections, ImageGroundTruth
from scratchdet_jax.ops.nms import Detections
from scratchdet_jax.reports.results import evaluate_run
from scratchdet_jax.run.open import SavedRun
from scratchdet_jax.tools.score import read_coco_results, score_coco
from tests.data.tfds_sets import make, plain_features
from tests.tiny import tiny_config

# COCO's ids have gaps: 12 and 26 do not exist.
NAMES = ("fire hydrant", "stop sign", "elephant", "backpack")
IDS = (11, 13, 25, 27)


def random_file(path, rng, images=12):
    """Writes a COCO annotation file; returns results near its boxes."""
    annotations, results = [], []
    for image in range(images):
        for _ in range(rng.integers(0, 5)):
            box = np.round(np.append(rng.uniform(0, 200, 2), rng.uniform(5, 250, 2)), 1)
            category = int(rng.choice(IDS[:3]))
            annotations.append(
                {
                    "id": 7 + 3 * len(annotations),
                    "image_id": 1000 - 7 * image,
                    "category_id": category,
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3] * rng.uniform(0.4, 1.0)),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
            for _ in range(rng.integers(0, 3)):
                near = box + rng.normal(0, 4, 4)
                results.append(
                    {
                        "image_id": 1000 - 7 * image,
                        "category_id": int(rng.choice([category, rng.choice(IDS)])),
                        "bbox": np.maximum(np.round(near, 1), 1).tolist(),
                        "score": float(rng.integers(1, 10) / 10),  # ties
                    }
                )
    content = {
        "images": [{"id": 1000 - 7 * i, "file_name": f"{i}.jpg"} for i in range(images)],
        "categories": [
            {"id": i, "name": name} for i, name in reversed(list(zip(IDS, NAMES, strict=True)))
        ],
        "annotations": annotations,
    }
    path.write_text(json.dumps(content))
    return results


def official(annotation_path, results):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotation_path))
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(4))
def test_scores_of_files_equal_those_of_pycocotools(tmp_path, capsys, seed):
    results = random_file(tmp_path / "a.json", np.random.default_rng(seed))
    (tmp_path / "r.json").write_text(json.dumps(results))
    expected = official(tmp_path / "a.json", results)

    record = score_coco(tmp_path / "a.json", tmp_path / "r.json")
    assert capsys.readouterr().out == ""
    ours = [record["mAP" if name == "AP" else name] for name in coco.METRICS]
    stats = [None if value < 0 else pytest.approx(value, abs=1e-9) for value in expected.stats]
    assert ours == stats
    precision = expected.eval["precision"][:, :, :, 0, -1]  # classes in order of id
    np.testing.assert_allclose(
        [record["AP"][name] for name in NAMES[:3]], precision.mean(axis=(0, 1))[:3], atol=1e-9
    )
    assert list(record["AP"]) == list(NAMES) and record["AP"][NAMES[3]] is None
    assert 0.05 < record["mAP"] < 0.95


def test_scores_in_memory_equal_those_of_a_file_without_areas(tmp_path):
    random_file(tmp_path / "a.json", np.random.default_rng(5))
    content = json.loads((tmp_path / "a.json").read_text())
    for annotation in content["annotations"]:
        del annotation["area"]
    (tmp_path / "b.json").write_text(json.dumps(content))
    truth = read_ground_truth(read_coco(tmp_path / "b.json"))
    # The labels are not in the order of the ids: classes must be matched by name.
    names = (NAMES[2], NAMES[0], NAMES[3], NAMES[1])
    ids = (IDS[2], IDS[0], IDS[3], IDS[1])
    label = {category: i for i, category in enumerate(ids, 1)}
    ground_truth, detections = {}, {}
    rng = np.random.default_rng(6)
    for image in truth.images:
        rows = [a for a in truth.annotations if a["image_id"] == image]
        xywh = np.array([a["bbox"] for a in rows]).reshape(-1, 4)
        boxes = np.concatenate([xywh[:, 1::-1], xywh[:, 1::-1] + xywh[:, :1:-1]], axis=1)
        labels = np.array([label[a["category_id"]] for a in rows], int)
        ignore = np.array([a["iscrowd"] for a in rows], bool)
        ground_truth[str(image)] = ImageGroundTruth(boxes, labels, ignore)
        near = np.repeat(boxes, 2, axis=0) + rng.normal(0, 6, (2 * len(rows), 4))
        detections[str(image)] = ImageDetections(
            near, rng.random(2 * len(rows)), np.repeat(labels, 2)
        )
    number = {image: i for i, image in enumerate(truth.images)}
    found = [
        {"image_id": number[image], "category_id": ids[label - 1], "score": score}
        | {"bbox": [box[1], box[0], box[3] - box[1], box[2] - box[0]]}
        for image in truth.images
        for box, score, label in zip(*map(np.ndarray.tolist, detections[str(image)]), strict=True)
    ]
    annotations = [{**a, "image_id": number[a["image_id"]]} for a in truth.annotations]
    categories = list(zip(ids, names, strict=True))
    by_file = coco.evaluate_rows(len(number), annotations, found, categories)
    in_memory = coco.evaluate(detections, ground_truth, names)
    np.testing.assert_allclose(
        list(in_memory.metrics.values()), list(by_file.metrics.values()), atol=1e-9
    )
    assert in_memory.per_class == pytest.approx(by_file.per_class, abs=1e-9)
    assert 0.05 < in_memory.metrics["AP"] < 0.95

    # The AP alone, against pycocotools on the same files.
    formats.write_coco(tmp_path / "r.json", detections, ids)
    expected = official(tmp_path / "a.json", json.loads((tmp_path / "r.json").read_text()))
    alone = coco.evaluate(detections, ground_truth, names, only_ap=True)
    assert alone.mean == pytest.approx(expected.stats[0], abs=1e-3)  # rounded coordinates
    assert alone.mean == pytest.approx(in_memory.metrics["AP"], abs=1e-12)
    assert alone.per_class == in_memory.per_class
    assert alone.record()["mAP"] == alone.mean


def test_the_ap_alone_counts_100_detections_and_no_ignored_boxes():
    far, box = np.array([[100.0, 100.0, 150.0, 150.0]]), BOX
    truth = {"1": ImageGroundTruth(np.concatenate([box, far]), np.array([1, 1]), np.array([0, 1]))}
    many = ImageDetections(
        np.concatenate([np.tile(far + 300, (100, 1)), box]),
        np.linspace(0.9, 0.1, 101),
        np.ones(101, int),
    )
    few = ImageDetections(np.concatenate([far, box]), np.array([0.9, 0.8]), np.array([1, 1]))
    for found, expected in ((many, 0.0), (few, 1.0)):
        alone = coco.evaluate({"1": found}, truth, ["a", "b"], only_ap=True)
        whole = coco.evaluate({"1": found}, truth, ["a", "b"])
        assert alone.mean == pytest.approx(expected) == pytest.approx(whole.metrics["AP"])
        assert alone.per_class["b"] is None
    nothing = {"1": truth["1"]._replace(labels=np.zeros(2))}
    empty = coco.evaluate({}, nothing, ["a"], only_ap=True)
    assert np.isnan(empty.mean) and empty.record() == {"mAP": None, "AP": {"a": None}}


BOX = np.array([[10.0, 10.0, 60.0, 60.0]])
TRUTH = {"7": ImageGroundTruth(BOX, np.array([2]), np.array([False]))}


def perfect(label=2, name="7"):
    return {name: ImageDetections(BOX, np.array([0.9]), np.array([label]))}


def test_perfect_detections():
    result = coco.evaluate(perfect(), TRUTH, NAMES)
    assert result.metrics["AP"] == pytest.approx(1.0)
    assert result.metrics["APm"] == pytest.approx(1.0)
    assert np.isnan(result.metrics["APs"])
    assert result.per_class["stop sign"] == pytest.approx(1.0)
    assert coco.evaluate(perfect(label=3), TRUTH, NAMES).metrics["AP"] == 0.0


def test_no_detections_and_no_ground_truth():
    empty = ImageDetections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    for detections in ({}, {"7": empty}):
        assert coco.evaluate(detections, TRUTH, NAMES).metrics["AP"] == 0.0
    assert np.isnan(coco.evaluate({}, {}, NAMES).metrics["AP"])


def test_a_crowd_is_neither_a_miss_nor_makes_false_positives():
    crowd = {
        "7": ImageGroundTruth(
            np.concatenate([BOX, [[100.0, 100.0, 300.0, 300.0]]]),
            np.array([2, 2]),
            np.array([False, True]),
        )
    }
    found = {
        "7": ImageDetections(
            np.concatenate([[[120.0, 120.0, 200.0, 200.0]], BOX]),
            np.array([0.95, 0.9]),
            np.array([2, 2]),
        )
    }
    assert coco.evaluate(found, crowd, NAMES).metrics["AP"] == pytest.approx(1.0)


def test_an_annotation_with_id_zero_can_be_matched(tmp_path):
    content = {
        "images": [{"id": 7}],
        "categories": [{"id": 13, "name": "stop sign"}],
        "annotations": [{"id": 0, "image_id": 7, "category_id": 13, "bbox": [10, 10, 50, 50]}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    formats.write_coco(tmp_path / "r.json", perfect(label=1), (13,))
    assert score_coco(tmp_path / "a.json", tmp_path / "r.json")["mAP"] == pytest.approx(1.0)


def test_bad_detections_are_named():
    with pytest.raises(UserError, match="'8'"):
        coco.evaluate(perfect(name="8"), TRUTH, NAMES)
    with pytest.raises(UserError, match="label 5"):
        coco.evaluate(perfect(label=5), TRUTH, NAMES)


def test_category_ids_of_a_submission():
    names = coco_classes.NAMES
    ids = formats.category_ids(names)
    assert len(ids) == 80 and ids == tuple(sorted(ids)) and (ids[0], ids[-1]) == (1, 90)
    known = {"person": 1, "stop sign": 13, "backpack": 27, "tv": 72, "dining table": 67}
    assert {name: ids[names.index(name)] for name in known} == known
    assert formats.category_ids(names[::-1]) == ids[::-1]
    assert formats.category_ids(names[:3]) == (1, 2, 3)


def test_results_round_trip(tmp_path):
    rng = np.random.default_rng(0)
    detections = {
        name: ImageDetections(
            rng.uniform(0, 300, (5, 4)) + np.array([0, 0, 300, 300]),
            rng.random(5).astype(np.float32),
            rng.integers(1, 5, 5),
        )
        for name in ("139", "street 7")
    }
    formats.write_coco(tmp_path / "new" / "r.json", detections, IDS)
    rows = json.loads((tmp_path / "new" / "r.json").read_text())
    assert {row["image_id"] for row in rows} == {139, "street 7"}
    assert [row["category_id"] for row in rows[:5]] == [
        IDS[i - 1] for i in detections["139"].labels
    ]
    again = read_coco_results(tmp_path / "new" / "r.json", IDS)
    for name, found in detections.items():
        x, y, width, height = np.transpose([row["bbox"] for row in again[name]])
        boxes = np.stack([y, x, y + height, x + width], axis=1)
        np.testing.assert_allclose(boxes, found.boxes_pixels, atol=1.1e-3)
        np.testing.assert_array_equal(
            np.float32([row["score"] for row in again[name]]), found.scores
        )
        assert [row["category_id"] for row in again[name]] == [IDS[i - 1] for i in found.labels]
    formats.write_coco(tmp_path / "empty.json", {}, IDS)
    assert read_coco_results(tmp_path / "empty.json", IDS) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("{}", "must be a list"),
        ('[{"image_id": 1, "category_id": 11, "score": 1}]', r"detections\[0\]: it is .*"),
        (
            '[{"image_id": 1, "category_id": 12, "bbox": [1, 2, 3, 4], "score": 1}]',
            "category id 12",
        ),
        (
            '[{"image_id": 1, "category_id": 11, "bbox": [1, 2, 3], "score": 1}]',
            r"'bbox': \[1, 2, 3\].*a bbox of four finite",
        ),
        (
            '[{"image_id": 1, "category_id": 11, "bbox": [1, 2, 3, 4], "score": NaN}]',
            "'score': nan.*a finite score",
        ),
        ('[{"image_id": 1.5, "category_id": 11, "bbox": [1, 2, 3, 4], "score": 1}]', "1.5"),
    ],
)
def test_bad_results_files(tmp_path, content, message):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_coco_results(tmp_path / "r.json", IDS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": None}, "not a COCO annotation file"),
        ({"categories": [{"id": 13}]}, "id 13, without a name, and annotations use it"),
    ],
)
def test_bad_annotation_files(tmp_path, change, message):
    content = {
        "images": [{"id": 7}],
        "categories": [{"id": 13, "name": "stop sign"}],
        "annotations": [{"image_id": 7, "category_id": 13, "bbox": [10, 10, 50, 50]}],
    }
    (tmp_path / "a.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(UserError, match=message):
        read_ground_truth(read_coco(tmp_path / "a.json"))


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_coco(tmp_path / "none.json")


def test_ids_that_are_the_same_number_stay_distinct(tmp_path):
    path = tmp_path / "r.json"
    for names, expected in ((("-3", "7"), {-3, 7}), (("7", "07"), {"7", "07"})):
        formats.write_coco(path, perfect(name=names[0]) | perfect(name=names[1]), IDS)
        assert {row["image_id"] for row in json.loads(path.read_text())} == expected


# Ids with gaps and not in the order of the names; "apple" never occurs.
CATEGORIES = {"kite": 38, "zebra": 5, "bench": 90, "apple": 12}
CORNERS = np.random.default_rng(3).uniform(0, 0.5, (12, 2))
CANDIDATES = np.concatenate([CORNERS, CORNERS + np.array([0.3, 0.4])], axis=1)


def coco_files(folder):
    """Writes images of several sizes; about half of the candidate boxes, shifted, are annotated."""
    rng, images, annotations = np.random.default_rng(4), [], []
    (folder / "pictures").mkdir()
    for number in (4, 17, 581929, 70000000001, 33):
        height, width = rng.integers(40, 65, 2).tolist()
        name = f"{number % 1000}.png"
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        cv2.imwrite(str(folder / "pictures" / name), pixels)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        boxes = [] if number == 33 else CANDIDATES.tolist()
        for label, (ymin, xmin, ymax, xmax) in enumerate(boxes):
            if rng.random() < 0.5:
                continue
            category = sorted(CATEGORIES.values())[label % 4]
            x, y = np.array([xmin * width, ymin * height]) + rng.uniform(-2, 2, 2)
            x, y = max(round(x, 2), 0), max(round(y, 2), 0)
            box = [x, y, round((xmax - xmin) * width, 2), round((ymax - ymin) * height, 2)]
            if category != 12 and x + box[2] <= width and y + box[3] <= height:
                annotations.append(
                    {
                        "id": 10 + 7 * len(annotations),
                        "image_id": number,
                        "category_id": category,
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": int(rng.random() < 0.2),
                    }
                )
    categories = [{"id": i, "name": name} for name, i in CATEGORIES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "a.json").write_text(json.dumps(content))


def candidates(detector, variables, images):
    """Replaces Detector.detect: the candidate boxes, with scores that depend on the image."""
    noise = images.reshape(len(images), -1)[:, : len(CANDIDATES)]
    order = jnp.argsort(-noise, axis=1)
    labels = jnp.asarray(np.arange(len(CANDIDATES), dtype=np.int32) % 4 + 1)
    scores = jnp.take_along_axis(jax.nn.sigmoid(noise / 99), order, axis=1)
    return Detections(jnp.float32(CANDIDATES)[order], scores, labels[order])


def test_evaluation_reports_the_boxes_left_out_of_a_foreign_data_set(tmp_path, monkeypatch, capsys):
    picture = cv2.imencode(".png", np.zeros((20, 30, 3), np.uint8))[1].tobytes()
    rows = [
        {"image": picture, "objects": [{"bbox": np.float32(box), "label": 0} for box in boxes]}
        for boxes in ([CANDIDATES[0], (0.5, 0.5, 0.5, 0.6)], [(1, 0, 1, 1), (2, 0, 3, 1)])
    ]
    box = tfds.features.Tensor(shape=(4,), dtype=np.float32)
    label = tfds.features.ClassLabel(names=NAMES)
    make(tmp_path, "odd", plain_features(box=box, label=label), {"test": rows})
    config = tiny_config(**{"data.dir": str(tmp_path), "data.eval": "handmade/odd:test"})
    trained = SavedRun(tmp_path, 7, types.SimpleNamespace(config=config, class_names=NAMES))
    detector = Detector(config, None, np.zeros((0, 4), np.float32), NAMES)
    monkeypatch.setattr(Detector, "detect", candidates)
    monkeypatch.setattr(
        saved_run, "load_detector", lambda run, config: (detector._replace(config=config), {})
    )
    with pytest.warns(UserWarning, match="of its boxes left out"):
        evaluate_run(trained, config, tmp_path / "out")
    words = "left out 3 boxes of 2 images of handmade/odd:test: 3 without area inside the image"
    assert capsys.readouterr().out.count(words) == 1


def test_images_without_boxes_get_detections_but_no_score(tmp_path, monkeypatch, capsys):
    picture = cv2.imencode(".png", np.full((20, 30, 3), 9, np.uint8))[1].tobytes()
    box = tfds.features.Tensor(shape=(4,), dtype=np.float32)
    label = tfds.features.ClassLabel(names=NAMES)
    rows = [{"image": picture, "objects": []} for _ in range(3)]
    make(tmp_path, "bare", plain_features(box=box, label=label), {"test": rows})
    fields = {"data.dir": str(tmp_path), "data.eval": "handmade/bare:test"}
    trained = SavedRun(
        tmp_path, 7, types.SimpleNamespace(config=tiny_config(**fields), class_names=NAMES)
    )
    detector = Detector(trained.info.config, None, np.zeros((0, 4), np.float32), NAMES)
    monkeypatch.setattr(Detector, "detect", candidates)
    monkeypatch.setattr(
        saved_run, "load_detector", lambda run, config: (detector._replace(config=config), {})
    )
    with pytest.raises(UserError, match=r"has a box; .*eval\.metric=none"):
        evaluate_run(trained, tiny_config(**fields), tmp_path / "out")
    config = tiny_config(**fields, **{"eval.metric": "none"})
    evaluation = evaluate_run(trained, config, tmp_path / "out")
    assert "(3 images): not scored" in capsys.readouterr().out
    lines = (tmp_path / f"out/comp4_det_test_{NAMES[0]}.txt").read_text().splitlines()
    kept = sum((found.labels == 1).sum() for found in evaluation.detections.values())
    assert len(lines) == kept > 0


def test_the_results_file_has_the_original_ids_and_gives_the_same_scores(tmp_path, monkeypatch):
    coco_files(tmp_path)
    split = CocoSplit("validation", tmp_path / "a.json", tmp_path / "pictures")
    prepare_coco_folder([split], tmp_path / "data", "gaps")
    config = tiny_config(
        **{
            "data.dir": str(tmp_path / "data"),
            "data.eval": "coco_folder/gaps:validation",
            "data.max_boxes": 12,
            "eval.metric": "coco",
            "eval.batch_size": 8,
        }
    )
    names = tuple(sorted(CATEGORIES, key=CATEGORIES.get))
    detector = Detector(config, None, np.zeros((0, 4), np.float32), names)
    monkeypatch.setattr(Detector, "detect", candidates)
    monkeypatch.setattr(
        saved_run, "load_detector", lambda run, config: (detector._replace(config=config), {})
    )
    trained = SavedRun(tmp_path, 7, types.SimpleNamespace(config=config, class_names=names))
    results = evaluate_run(trained, config, tmp_path / "out").results

    rows = json.loads((tmp_path / "out/coco_results.json").read_text())
    assert {row["image_id"] for row in rows} == {4, 17, 581929, 70000000001, 33}
    assert {row["category_id"] for row in rows} == {5, 12, 38, 90}
    expected = official(tmp_path / "a.json", rows)
    ours = [results["mAP" if name == "AP" else name] for name in coco.METRICS]
    stats = [None if value < 0 else pytest.approx(value, abs=1e-6) for value in expected.stats]
    assert ours == stats
    assert 0.1 < results["mAP"] < 0.9
    assert results["AP"]["apple"] is None


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_annotation_files_are_repaired_as_by_prepare(tmp_path, capsys, encoding):
    box = {"image_id": 7.0, "category_id": 13, "bbox": [10, 10, 50, 40]}
    content = {
        "images": [{"id": 7}],
        "categories": [{"id": 13, "name": "stop\nsign"}],
        "annotations": [{**box, "area": "big"}, {**box, "iscrowd": [1]}, box],
    }
    (tmp_path / "a.json").write_text(json.dumps(content), encoding)
    found = read_ground_truth(read_coco(tmp_path / "a.json"))
    rows = found.annotations
    assert [(row["area"], row["iscrowd"]) for row in rows] == [(2000.0, 0)] * 3
    assert found.categories == ((13, "stop sign"),)
    kinds = [defect.kind for defect in found.defects]
    assert kinds.count(Kind.AREA) == kinds.count(Kind.FLAG) == 1
