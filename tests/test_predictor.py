"""The Python interface: `scratchdet_jax.load` and the predictor it returns."""

import itertools
import json
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scratchdet_jax
from scratchdet_jax.data.images import fit_to_canvas
from scratchdet_jax.detector import build_detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation.detections import to_image_detections
from scratchdet_jax.ops.resample import resize
from scratchdet_jax.progress import map_ahead, usable_cores
from scratchdet_jax.run.checkpoints import Checkpoints, RunInfo
from scratchdet_jax.run.state import create_state
from scratchdet_jax.tools.score import read_coco_results, read_voc_files
from scratchdet_jax.training.optimizer import make_optimizer
from tests.plain import FIELDS, plain_backbone
from tests.tiny import tiny_config

NAMES = ("cat", "dog", "cow")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run with one checkpoint of random weights and a score threshold of 0."""
    path = tmp_path_factory.mktemp("run")
    config = tiny_config(**FIELDS, **{"eval.score_threshold": 0.0, "eval.max_detections": 20})
    with plain_backbone():
        detector = build_detector(config, NAMES)
        state = create_state(detector.model, make_optimizer(config), config.image_size, 0)
        checkpoints = Checkpoints(path)
        checkpoints.save(7, state, RunInfo(config, NAMES))
        checkpoints.close()
        yield path, config, detector, state


@pytest.fixture(scope="module")
def predictor(workdir):
    return scratchdet_jax.load(workdir[0], batch_size=4)


def picture(seed, shape=(50, 60, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def assert_same(found, expected):
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.05)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.size == expected.size


@pytest.mark.parametrize("shape", [(40, 90, 3), (700, 500, 3)], ids=["small", "above the canvas"])
def test_a_call_equals_the_detector_on_the_padded_canvas(workdir, predictor, shape):
    _, config, detector, state = workdir
    image = picture(0, shape)
    assert predictor.class_names == NAMES
    found = predictor(image, 0)

    height, width = config.data.canvas
    reduced = fit_to_canvas(image, (height, width))
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[: len(reduced), : reduced.shape[1]] = reduced
    pixels = resize(jnp.asarray(canvas), jnp.int32(reduced.shape[:2]), config.image_size)
    expected = jax.jit(detector.detect)(state.variables, detector.normalize(pixels)[None])
    expected = to_image_detections(jax.device_get(expected), 0, np.array(shape[:2]))
    assert len(found) == len(expected.scores) > 0
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes[:, [1, 0, 3, 2]], expected.boxes_pixels, atol=0.05)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.names == [NAMES[label - 1] for label in expected.labels]
    assert found.size == shape[:2]


def test_a_path_and_its_pixels_give_the_same_detections(workdir, tmp_path):
    image = picture(1)
    cv2.imwrite(str(tmp_path / "photo.png"), image[:, :, ::-1])
    predictor = scratchdet_jax.load(f"{workdir[0]}@7")
    for path in (tmp_path / "photo.png", str(tmp_path / "photo.png")):
        found, expected = predictor(path, 0), predictor(image, 0)
        assert_same(found, expected)
        np.testing.assert_array_equal(found.draw(), expected.draw())


def test_an_image_gives_one_result_a_list_a_list_and_an_iterator_a_generator(predictor):
    images = [picture(seed, (30 + seed, 90 - seed, 3)) for seed in range(11)]  # 4, 4 and 3
    alone = [predictor(image, 0) for image in images]
    listed = predictor(images, 0)
    assert isinstance(listed, list) and isinstance(predictor(tuple(images[:1])), list)
    streamed = predictor(iter(images), 0)
    assert iter(streamed) is streamed
    for a, b, c in zip(alone, listed, streamed, strict=True):
        assert_same(b, a)
        assert_same(c, a)
    assert predictor([]) == [] and list(predictor(iter([]))) == []


def test_an_iterator_is_read_three_batches_ahead_at_most(predictor):
    read = 0

    def endless():
        nonlocal read
        for read in itertools.count(1):
            yield picture(read % 5)

    streamed = predictor(endless())
    assert read == 0
    for done, _ in enumerate(itertools.islice(streamed, 30), start=1):
        assert done < read <= done + 3 * predictor.batch_size
    streamed.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("map_ahead")]


def test_thresholds(predictor):
    image = picture(3)
    everything = predictor(image, 0)
    middle = float(everything.scores[1])
    found = predictor(image, middle)
    assert len(found) == (everything.scores >= np.float32(middle)).sum() < len(everything)
    for only_dogs in ([1.0, 0, 1.0], {"cat": 1, "dog": 0, "cow": 1}):
        found = predictor(image, only_dogs)
        kept = (everything.labels == 2) | (everything.scores == 1)  # random weights are sure
        np.testing.assert_array_equal(found.labels, everything.labels[kept])
    assert_same(predictor(image, {"dog": 0.5}), predictor(image))
    for wrong in (-0.1, 1.5, float("nan"), [0.5, 0.5], "high", None):
        with pytest.raises(UserError, match="must be a number from 0 to 1, 3 of them"):
            predictor(image, wrong)
    with pytest.raises(UserError, match=r"the class 'sheep', but the classes are \['cat', 'dog'"):
        predictor(image, {"sheep": 0.5})


def test_broken_images_are_raised_or_returned_in_their_place(predictor, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    images = [picture(1), tmp_path / "text.jpg", picture(2), tmp_path / "none.jpg", picture(3)]
    found = predictor(images, return_exceptions=True)
    assert [isinstance(one, UserError) for one in found] == [False, True, False, True, False]
    assert "text.jpg cannot be decoded as an image" in str(found[1])
    assert_same(found[4], predictor(picture(3)))
    streamed = predictor(iter(images))
    assert next(streamed).size == (50, 60)
    with pytest.raises(UserError, match=r"text\.jpg"):
        next(streamed)


def test_bad_input_is_a_user_error(workdir, predictor, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    for image, problem in (
        (tmp_path / "none.jpg", "there is no image"),
        (tmp_path, "there is no image"),
        (tmp_path / "text.jpg", "cannot be decoded as an image"),
        (np.zeros((8, 8, 3), np.float32), r"uint8 \[H, W, 3\] in RGB order, not float32"),
        (np.zeros((8, 8), np.uint8), r"not uint8 \(8, 8\)"),
        (np.zeros((0, 8, 3), np.uint8), r"not uint8 \(0, 8, 3\)"),
        (None, "not NoneType"),
        ([7], "not int"),
    ):
        with pytest.raises(UserError, match=problem):
            predictor(image)
    with pytest.raises(UserError, match="there is no run in"):
        scratchdet_jax.load(tmp_path / "nowhere")
    with pytest.raises(scratchdet_jax.UserError, match="there is no checkpoint '8'"):
        scratchdet_jax.load(f"{workdir[0]}@8")
    with pytest.raises(UserError, match="at least one image"):
        scratchdet_jax.load(workdir[0], batch_size=0)


def test_detections_become_coco_and_voc_results(predictor, tmp_path):
    cv2.imwrite(str(tmp_path / "000000000139.png"), picture(4)[:, :, ::-1])
    found = predictor(tmp_path / "000000000139.png", 0)
    entries = found.to_coco()
    assert {entry["image_id"] for entry in entries} == {139}
    (tmp_path / "results.json").write_text(json.dumps(entries))
    again = read_coco_results(tmp_path / "results.json", (1, 2, 3))["139"]
    x, y, width, height = np.transpose([row["bbox"] for row in again])
    boxes = np.stack([x, y, x + width, y + height], axis=1)
    np.testing.assert_allclose(boxes, found.boxes, atol=0.002)
    np.testing.assert_array_equal(np.float32([row["score"] for row in again]), found.scores)
    np.testing.assert_array_equal([row["category_id"] for row in again], found.labels)

    lines = found.to_voc()
    assert set(lines) == set(found.names)
    for name in lines:
        (tmp_path / f"comp4_det_test_{name}.txt").write_text("\n".join(lines[name]))
    again = read_voc_files(tmp_path, "test", NAMES)["000000000139"]
    order = np.argsort(-again.scores, kind="stable")
    np.testing.assert_allclose(again.boxes_pixels[order][:, [1, 0, 3, 2]], found.boxes, atol=0.002)
    unnamed = predictor(picture(4), 0)
    assert unnamed.to_coco("a")[0] == {**entries[0], "image_id": "a"}
    assert unnamed.to_voc("a")[unnamed.names[0]][0].startswith("a ")
    for convert in (unnamed.to_coco, unnamed.to_voc):
        with pytest.raises(UserError, match="pass image_id"):
            convert()


def test_detections_are_shown(predictor, tmp_path):
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), picture(5, (1200, 2400, 3)))
    found = predictor(path, 0)
    text = repr(found)
    assert text.startswith(f"<{len(found)} detections in {path}, 2400 × 1200 pixels: ")
    assert f"{found.names[0]} {found.scores[0]:.2f}, " in text and text.endswith(", …>")
    assert found.draw().shape == (1200, 2400, 3)
    shown = cv2.imdecode(np.frombuffer(found._repr_png_(), np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (512, 1024, 3)
    path.unlink()
    assert found._repr_png_() is None
    with pytest.raises(UserError, match="there is no image"):
        found.draw()
    nothing = np.zeros(0, np.int32)
    nothing = scratchdet_jax.Detections(
        np.zeros((0, 4)), nothing, nothing, (50, 60), NAMES, picture(5)
    )
    assert repr(nothing) == "<0 detections, 60 × 50 pixels>"
    assert nothing.names == nothing.to_coco(1) == [] and nothing.to_voc("a") == {}
    assert nothing.draw().shape == (320, 384, 3)


def test_importing_the_package_imports_neither_jax_nor_numpy():
    code = (
        "import time; start = time.perf_counter(); import json, sys, scratchdet_jax; "
        "seconds = time.perf_counter() - start; "
        "print(json.dumps([seconds, [m for m in ('jax', 'numpy', 'cv2') if m in sys.modules]]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    seconds, imported = json.loads(result.stdout)
    assert imported == []
    assert seconds < 0.5


def test_map_ahead_keeps_order_and_stays_close_to_the_consumer():
    started = []

    def note(i):
        started.append(i)
        return i * i

    ahead = 2 * usable_cores()
    results = map_ahead(note, range(1000), ahead)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(started) <= 5 + ahead
    assert list(results) == [i * i for i in range(5, 1000)]
