import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.datasets import shapes


@pytest.fixture(scope="module")
def scenes():
    return [shapes.make_scene("train", i) for i in range(150)]


def test_a_scene_depends_on_split_and_index_only():
    first = shapes.make_scene("train", 3)
    again = shapes.make_scene("train", 3)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    for other in (shapes.make_scene("train", 4), shapes.make_scene("validation", 3)):
        assert not np.array_equal(first.image, other.image)


def test_scenes_are_the_same_on_every_machine():
    # Recorded values. The boxes depend only on the generator, the mean also on OpenCV.
    scene = shapes.make_scene("validation", 2)
    np.testing.assert_allclose(scene.boxes[0], [0.524014, 0.293831, 0.639527, 0.416890], atol=1e-6)
    assert scene.labels.tolist() == [5, 2, 3, 3, 3, 1, 3, 3, 4]
    np.testing.assert_allclose(scene.image.mean((0, 1)), [86.865, 61.893, 96.484], atol=0.05)


def test_scenes_are_well_formed(scenes):
    for scene in scenes:
        assert scene.image.shape == (shapes.SIZE, shapes.SIZE, 3)
        assert scene.image.dtype == np.uint8
        assert 1 <= len(scene.boxes) <= 10
        assert len(scene.boxes) == len(scene.labels) == len(scene.difficult)
        assert np.all((scene.boxes >= 0) & (scene.boxes <= 1))
        assert np.all(scene.boxes[:, 2:] - scene.boxes[:, :2] > 4 / shapes.SIZE)


def test_scenes_are_varied_and_mostly_of_small_objects(scenes):
    boxes = np.concatenate([scene.boxes for scene in scenes])
    sides = (boxes[:, 2:] - boxes[:, :2]).max(1) * shapes.SIZE
    assert np.mean(sides < 24) > 0.4
    assert np.mean(sides > 44) > 0.1
    assert sides.min() > 10
    assert sides.max() <= 76
    counts = np.bincount(np.concatenate([scene.labels for scene in scenes]), minlength=6)
    assert counts.min() > 0.1 * counts.sum()
    assert {len(scene.boxes) for scene in scenes} == set(range(3, 11))
    assert 0 < np.mean(np.concatenate([scene.difficult for scene in scenes])) < 0.1
    touching = np.mean(np.any((boxes == 0) | (boxes == 1), axis=1))
    assert 0.02 < touching < 0.5  # some objects extend beyond the image, most do not


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(shapes.CLASS_NAMES), st.floats(14, 76))
def test_contours_fill_their_box(seed, name, size):
    rng = np.random.default_rng(seed)
    contours = shapes._place(rng, shapes._outline(rng, name), size)
    low, high = contours[0].min(0), contours[0].max(0)
    assert np.isclose((high - low).max(), size)
    assert np.all(low >= -0.2 * size - 1e-9)
    assert np.all(high <= shapes.SIZE + 0.2 * size + 1e-9)
    patch = shapes._Patch.around(contours)
    rows, columns = np.nonzero(patch.mask > 0.05)
    seen_low = np.array([columns.min(), rows.min()]) + patch.origin
    seen_high = np.array([columns.max(), rows.max()]) + patch.origin + 1
    assert np.all(np.abs(seen_low - low) < 1.6)  # sharp tips cover little of their pixel
    assert np.all(np.abs(seen_high - high) < 1.6)
    hole = (contours[0].mean(0) - patch.origin).astype(int)
    assert (patch.mask[hole[1], hole[0]] < 0.5) == (name == "ring")


def test_nothing_hides_more_than_seven_tenths(monkeypatch):
    painted = []
    monkeypatch.setattr(
        shapes, "_paint_object", lambda rng, image, patch, contours, label: painted.append(patch)
    )
    some_difficult = False
    for seed in range(40):
        painted.clear()
        rng = np.random.default_rng(seed)
        image = np.zeros((shapes.SIZE, shapes.SIZE, 3), np.float32)
        _, _, difficult = shapes._place_objects(rng, image, 10)
        owner = np.full((shapes.SIZE, shapes.SIZE), -1)
        for i, patch in enumerate(painted):
            owner[patch.inside][patch.mask[patch.visible] > 0.5] = i
        for i, patch in enumerate(painted):
            share = np.sum(owner == i) / np.sum(patch.mask > 0.5)
            assert share >= 0.3
            assert (share < 0.5) == difficult[i]
        some_difficult |= difficult.any()
    assert some_difficult


def test_prepared_once_and_read_back(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shapes, "SPLIT_SIZES", {"train": 5, "validation": 3})
    source = DetectionSource("shapes:validation", tmp_path)
    assert "creating the shapes data set" in capsys.readouterr().out
    assert len(source) == 3
    assert source.class_names == shapes.CLASS_NAMES
    for example in (source[i] for i in range(3)):
        split, index = example["image_id"].split("_")
        scene = shapes.make_scene(split, int(index))
        assert split == "validation"
        np.testing.assert_allclose(example["boxes"], scene.boxes, atol=1e-6)
        np.testing.assert_array_equal(example["labels"], scene.labels + 1)
        np.testing.assert_array_equal(example["ignore"], scene.difficult)
        image = cv2.imdecode(np.frombuffer(example["image"], np.uint8), cv2.IMREAD_COLOR)
        difference = image[..., ::-1].astype(int) - scene.image
        assert np.abs(difference).mean() < 12  # JPEG of a noisy image
    files = sorted((tmp_path / "shapes").rglob("*"))
    before = [f.stat().st_mtime_ns for f in files]
    assert len(DetectionSource("shapes:train", tmp_path)) == 5
    assert capsys.readouterr().out == ""
    assert [f.stat().st_mtime_ns for f in files] == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shapes"]
