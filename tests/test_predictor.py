"""The Python interface: `scratchdet_jax.load` and the predictor it returns."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scratchdet_jax
from scratchdet_jax.detector import build_detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation.detections import to_image_detections
from scratchdet_jax.ops.resample import resize
from scratchdet_jax.run.checkpoints import Checkpoints, RunInfo
from scratchdet_jax.run.state import create_state
from scratchdet_jax.training.optimizer import make_optimizer
from tests.tiny import tiny_config

NAMES = ("cat", "dog", "cow")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run with one checkpoint of random weights and a score threshold of 0."""
    path = tmp_path_factory.mktemp("run")
    config = tiny_config(**{"eval.score_threshold": 0.0, "eval.max_detections": 20})
    detector = build_detector(config, NAMES)
    state = create_state(detector.model, make_optimizer(config), config.image_size, 0)
    checkpoints = Checkpoints(path)
    checkpoints.save(7, state, RunInfo(config, NAMES))
    checkpoints.close()
    return path, config, detector, state


@pytest.mark.parametrize("shape", [(40, 90, 3), (700, 500, 3)], ids=["small", "above the canvas"])
def test_a_call_equals_the_detector_on_the_padded_canvas(workdir, shape):
    path, config, detector, state = workdir
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    predictor = scratchdet_jax.load(path)
    assert predictor.class_names == NAMES
    found = predictor(image)

    from scratchdet_jax.data.images import fit_to_canvas

    height, width = config.data.canvas
    reduced = fit_to_canvas(image, (height, width))
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[: len(reduced), : reduced.shape[1]] = reduced
    pixels = resize(jnp.asarray(canvas), jnp.int32(reduced.shape[:2]), config.image_size)
    expected = detector.detect(state.variables, detector.normalize(pixels)[None])
    expected = to_image_detections(jax.device_get(expected), 0, np.array(shape[:2]))
    assert len(found.scores) == len(expected.scores) > 0
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes_pixels, expected.boxes_pixels, atol=0.05)
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_a_path_and_its_pixels_give_the_same_detections(workdir, tmp_path):
    image = np.random.default_rng(1).integers(0, 256, (50, 60, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "photo.png"), image[:, :, ::-1])
    predictor = scratchdet_jax.load(f"{workdir[0]}@7")
    for ours, theirs in zip(predictor(tmp_path / "photo.png"), predictor(image), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_bad_input_is_a_user_error(workdir, tmp_path):
    predictor = scratchdet_jax.load(str(workdir[0]))
    (tmp_path / "text.jpg").write_text("no image")
    for image, problem in (
        (tmp_path / "none.jpg", "there is no image"),
        (tmp_path / "text.jpg", "cannot be decoded as an image"),
        (np.zeros((8, 8, 3), np.float32), r"uint8 \[H, W, 3\] in RGB order, not float32"),
        (np.zeros((8, 8), np.uint8), r"not uint8 \(8, 8\)"),
    ):
        with pytest.raises(UserError, match=problem):
            predictor(image)
    with pytest.raises(UserError, match="there is no run in"):
        scratchdet_jax.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="there is no checkpoint '8'"):
        scratchdet_jax.load(f"{workdir[0]}@8")


def test_importing_the_package_imports_neither_jax_nor_numpy():
    code = (
        "import json, sys, scratchdet_jax; "
        "print(json.dumps([m for m in ('jax', 'numpy', 'flax') if m in sys.modules]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) == []
