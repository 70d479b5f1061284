import cv2
import numpy as np
import pytest

from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation import drawing
from scratchdet_jax.evaluation.detections import ImageGroundTruth

NAMES = ("circle", "square", "triangle")


def gray(height=400, width=500):
    return np.full((height, width, 3), 128, np.uint8)


def draw(image, boxes, labels, scores=None, **options):
    boxes = np.array(boxes, float).reshape(-1, 4)
    return drawing.draw_detections(image, boxes, np.array(labels), scores, NAMES, **options)


def test_box_edges_have_the_class_color_and_the_inside_is_unchanged():
    image = gray()
    picture = draw(image, [(100, 50, 300, 450)], [2])
    color = drawing.class_color(2)
    assert picture.shape == image.shape and picture.dtype == np.uint8
    for y, x in ((200, 50), (200, 450), (300, 250), (100, 400)):
        assert tuple(picture[y, x]) == color
    assert (picture[110:290, 60:440] == 128).all()
    assert (image == 128).all()


def test_small_image_is_enlarged_with_its_boxes():
    picture = draw(gray(64, 128), [(32, 16, 48, 96)], [1])
    assert picture.shape == (192, 384, 3)
    assert tuple(picture[120, 48]) == tuple(picture[144, 200]) == drawing.class_color(1)


def test_large_image_keeps_its_size_and_gets_thicker_lines():
    box = [(400, 400, 1500, 1900)]
    picture = draw(gray(1600, 2000), box, [1])
    column = (picture[1000] == drawing.class_color(1)).all(axis=-1)
    assert picture.shape == (1600, 2000, 3)
    assert column.sum() >= 2 * 6


def test_score_changes_the_text():
    box, label = [(100, 50, 300, 450)], [2]
    without, low, high = (draw(gray(), box, label, s) for s in (None, [0.25], [0.75]))
    assert (without != low).any() and (low != high).any()
    assert (without[110:] == low[110:]).all()


@pytest.mark.parametrize(
    "box", [(-50, -50, 900, 900), (0, 0, 5, 5), (380, 480, 420, 540), (10, 10, 10, 10)]
)
def test_boxes_at_and_beyond_the_edges_are_visible(box):
    picture = draw(gray(), [box], [3], [0.5])
    assert (picture == drawing.class_color(3)).all(axis=-1).sum() > 50


def test_best_scored_box_is_on_top():
    boxes = [(100, 100, 300, 300)] * 2
    picture = draw(gray(), boxes, [1, 2], [0.9, 0.2])
    assert tuple(picture[200, 100]) == drawing.class_color(1)


def test_empty_slots_and_non_finite_boxes_are_skipped():
    image = gray()
    boxes = [(100, 100, 300, 300), (np.nan, 0, 10, 10)]
    assert (draw(image, boxes, [0, 1], [0.9, 0.8]) == image).all()
    assert (draw(image, [], []) == image).all()


def test_ground_truth_is_dashed_white_and_grey_when_ignored():
    truth = ImageGroundTruth(
        np.array([[100.0, 100, 300, 300], [50, 350, 150, 450], [0, 0, 0, 0]]),
        np.array([1, 1, 0]),
        np.array([False, True, False]),
    )
    picture = draw(gray(), [], [], ground_truth=truth)
    edge = picture[105:295, 100]
    assert (edge == 255).all(axis=-1).any() and (edge == 40).all(axis=-1).any()
    assert (picture[55:145, 350] == 160).all(axis=-1).any()
    assert tuple(picture[0, 0]) == (128, 128, 128)


def test_colors_differ():
    colors = np.array([drawing.class_color(label) for label in range(1, 81)], int)
    distance = np.abs(colors[:, None] - colors[None]).sum(axis=-1)
    assert (distance[~np.eye(80, dtype=bool)] > 0).all()
    assert (distance[:20, :20][~np.eye(20, dtype=bool)] > 40).all()


def test_grid_places_images_in_rows():
    images = [np.full((20, 30, 3), value, np.uint8) for value in (10, 20, 30)]
    images[1] = images[1][:10]
    picture = drawing.grid(images, 2)
    assert picture.shape == (2 * 20 + 3 * 8, 2 * 30 + 3 * 8, 3)
    assert (picture[8:28, 8:38] == 10).all()
    assert (picture[13:23, 46:76] == 20).all() and (picture[8:13, 46:76] == 230).all()
    assert (picture[36:56, 8:38] == 30).all() and (picture[36:56, 46:76] == 230).all()
    assert drawing.grid(images[:1], 4).shape == (36, 46, 3)
    with pytest.raises(ValueError, match="grid"):
        drawing.grid([], 2)


def test_png_preserves_rgb(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    drawing.save_png(tmp_path / "new" / "a.png", image)
    again = cv2.imread(str(tmp_path / "new" / "a.png"))[..., ::-1]
    np.testing.assert_array_equal(again, image)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        drawing.save_png(tmp_path / "file" / "a.png", image)
