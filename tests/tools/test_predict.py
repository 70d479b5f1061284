"""predict replaces nothing but its own results; see tests/training/test_loop.py for these."""

import json
import shutil

import cv2
import jax
import numpy as np
import pytest

from scratchdet_jax.detector import build_detector
from scratchdet_jax.run.checkpoints import Checkpoints, RunInfo
from scratchdet_jax.run.state import create_state
from scratchdet_jax.tools import predict
from scratchdet_jax.training.optimizer import make_optimizer
from tests.command import exit_status
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    config = tiny_config(**{"eval.score_threshold": 0.0})
    detector = build_detector(config, ("cat", "dog"))
    state = create_state(detector.model, make_optimizer(config), config.image_size, 0)
    checkpoints = Checkpoints(path)
    checkpoints.save(7, jax.device_get(state), RunInfo(config, ("cat", "dog")))
    checkpoints.close()
    return path


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("holiday.png", "other.jpg"):
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (40, 60, 3), np.uint8))
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(workdir, output, *images):
    return exit_status(
        predict.main, f"--workdir={workdir}", "--checkpoint=latest", f"--output={output}", *images
    )


def test_the_folder_of_the_photos_as_output(workdir, photos, capsys, monkeypatch):
    before = content(photos)
    assert run(workdir, photos, photos / "holiday.png", photos / "other.jpg") == 1
    assert content(photos) == before
    assert capsys.readouterr().err == (
        f"error: {photos / 'holiday.png'} is one of the images and would be replaced: choose "
        "another folder with --output\n"
    )
    monkeypatch.chdir(photos)  # other spellings of the same folder
    assert run(workdir, ".", "holiday.png") == 1
    assert run(workdir, f"../{photos.name}", photos / "holiday.png") == 1
    (photos.parent / "link").symlink_to(photos)
    assert run(workdir, photos.parent / "link", "other.jpg", "holiday.png") == 1
    assert content(photos) == before


@pytest.mark.parametrize("name", ["other.png", "grid.png", "detections.json"])
def test_a_file_of_somebody_else_is_kept(workdir, photos, name, capsys):
    (photos / name).write_text('{"images": [], "annotations": []}')
    before = content(photos)
    assert run(workdir, photos, photos / "other.jpg") == 1
    assert content(photos) == before
    assert f"{photos / name} exists and was not written by this command" in capsys.readouterr().err


def test_a_link_is_not_followed(workdir, photos, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "other.png").symlink_to(tmp_path / "missing.png")
    assert run(workdir, output, photos / "other.jpg") == 1
    assert content(photos).keys() == {"holiday.png", "other.jpg"}
    assert not (tmp_path / "missing.png").exists()


def test_own_results_are_replaced_and_those_of_another_run_kept(workdir, photos, tmp_path, capsys):
    output = tmp_path / "out"
    for _ in range(2):
        assert run(workdir, output, photos / "other.jpg", photos / "other.jpg") == 0
    assert sorted(content(output)) == ["detections.json", "grid.png", "other.png"]
    assert "1 picture, grid.png and detections.json in" in capsys.readouterr().out
    assert cv2.imread(str(output / "other.png")) is not None
    before = content(output)
    other = tmp_path / "other run"
    other.symlink_to(workdir)  # the same run, resolved
    assert run(other, output, photos / "other.jpg") == 0
    copied = tmp_path / "copied"
    shutil.copytree(workdir, copied)
    assert run(copied, output, photos / "other.jpg") == 1
    assert content(output) == before


def test_an_interrupted_command_can_be_repeated(workdir, photos, tmp_path, monkeypatch):
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(predict, "grid", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(workdir, output, photos / "other.jpg") == 130
    # The detections come first and the grid last.
    assert sorted(content(output)) == ["detections.json", "other.png"]
    assert run(workdir, output, photos / "other.jpg") == 0


def test_pictures_do_not_replace_each_other(workdir, tmp_path):
    names = ["a/x.jpg", "b/x.jpg", "a/x-2.jpg", "a/X.png", "a/grid.jpg", "a/grid-2.jpg"]
    rng = np.random.default_rng(1)
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, (9, 9, 3), np.uint8))
    output = tmp_path / "out"
    assert run(workdir, output, *(tmp_path / name for name in names)) == 0
    pictures = {path.stem for path in output.glob("*.png")}
    assert pictures == {"x", "x-2", "x-2-2", "X-3", "grid-2", "grid-2-2", "grid"}
    record = json.loads((output / "detections.json").read_text())
    assert list(record) == [str(tmp_path / name) for name in names]


def test_pictures_of_a_split_are_named_by_whole_ids(tmp_path):
    """An id has no suffix: Roboflow's end with .rf.HASH, and all would get the same name."""
    ids = ["valid/a_jpg.rf.01", "valid/a_jpg.rf.02", "naïve.v2", "cam1/f", "cam2/f", "photo.JPG"]
    files = predict._picture_files(ids, tmp_path)
    names = ["a_jpg.rf.01", "a_jpg.rf.02", "naïve.v2", "f", "f-2", "photo"]
    assert files == [tmp_path / f"{name}.png" for name in names]
