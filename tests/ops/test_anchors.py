import numpy as np
import pytest

from scratchdet_jax.errors import UserError
from scratchdet_jax.ops.anchors import (
    SPECIFICATIONS,
    anchors_per_cell,
    make_anchors,
    sizes_in_pixels,
)

VOC = SPECIFICATIONS["voc300"]
SSD_MAPS = (38, 19, 10, 5, 3, 1)


def pixel_boxes(anchors, size):
    """(centre y, centre x, height, width) in pixels."""
    ymin, xmin, ymax, xmax = (anchors.astype(np.float64) * size).T
    return np.stack([(ymin + ymax) / 2, (xmin + xmax) / 2, ymax - ymin, xmax - xmin], -1)


def test_counts_of_the_published_detectors():
    assert make_anchors(VOC, SSD_MAPS).shape == (8732, 4)
    root_resnet = VOC._replace(steps=(8, 16, 32, 64, 100, 150))
    assert make_anchors(root_resnet, (38, 19, 10, 5, 3, 2)).shape == (8744, 4)
    assert make_anchors(SPECIFICATIONS["voc512"], (64, 32, 16, 8, 4, 2, 1)).shape == (24564, 4)
    assert anchors_per_cell(VOC.aspect_ratios) == (4, 6, 6, 6, 4, 4)


def test_first_cell_of_voc300_by_hand():
    anchors = make_anchors(VOC, SSD_MAPS)
    assert anchors.dtype == np.float32
    middle, root = np.sqrt(30 * 60), np.sqrt(2)
    expected = [
        (4, 4, 30, 30),
        (4, 4, middle, middle),
        (4, 4, 30 / root, 30 * root),  # ratio 2: wide
        (4, 4, 30 * root, 30 / root),  # ratio 1/2: tall
    ]
    np.testing.assert_allclose(pixel_boxes(anchors[:4], 300), expected, atol=1e-4)
    # Not clipped: 4 px from the border, 30 px wide.
    np.testing.assert_allclose(anchors[0] * 300, [-11, -11, 19, 19], atol=1e-4)


def test_order_is_level_row_column_anchor():
    boxes = pixel_boxes(make_anchors(VOC, SSD_MAPS), 300)
    np.testing.assert_allclose(boxes[4, :2], (4, 12), atol=1e-4)  # next column
    np.testing.assert_allclose(boxes[4 * 38, :2], (12, 4), atol=1e-4)  # next row
    second = boxes[4 * 38 * 38 :][:6]  # second level: six anchors in a cell
    np.testing.assert_allclose(second[:, :2], np.full((6, 2), 8), atol=1e-4)
    np.testing.assert_allclose(second[0, 2:], (60, 60), atol=1e-4)
    np.testing.assert_allclose(second[4, 2:], (60 / 3**0.5, 60 * 3**0.5), atol=1e-4)
    np.testing.assert_allclose(second[5, 2:], (60 * 3**0.5, 60 / 3**0.5), atol=1e-4)
    np.testing.assert_allclose(boxes[-4], (150, 150, 264, 264), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("voc300", (30, 60, 111, 162, 213, 264), (60, 111, 162, 213, 264, 315)),
        ("coco300", (21, 45, 99, 153, 207, 261), (45, 99, 153, 207, 261, 315)),
        # SSD's script gives 35.84, 76.8, 153.6 …; its PriorBox layer stores them as int.
        ("voc512", (35, 76, 153, 230, 307, 384, 460), (76, 153, 230, 307, 384, 460, 537)),
        ("coco512", (20, 51, 133, 215, 296, 378, 460), (51, 133, 215, 296, 378, 460, 542)),
    ],
)
def test_sizes_in_pixels(name, low, high):
    assert sizes_in_pixels(SPECIFICATIONS[name]) == tuple(zip(low, high, strict=True))


def test_clipped_sides_are_at_most_the_images():
    spec = SPECIFICATIONS["voc300"]
    maps = (38, 19, 10, 5, 3, 1)
    plain, clipped = (make_anchors(spec._replace(sides_clipped=c), maps) for c in (False, True))
    for a, b in zip(plain, clipped, strict=True):
        centre, sides = (a[:2] + a[2:]) / 2, np.minimum(a[2:] - a[:2], 1)
        np.testing.assert_allclose(b, [*(centre - sides / 2), *(centre + sides / 2)], atol=1e-6)
    # On the 3×3 map 213·√2 is just above 300, on the 1×1 map 264·√2 = 373.
    assert (plain != clipped).any(1).sum() == 9 * 2 + 2


def test_without_steps_the_cells_divide_the_image():
    specification = VOC._replace(steps=())
    anchors = make_anchors(specification, [(2, 3)] * 6)
    boxes = pixel_boxes(anchors[: 2 * 3 * 4 : 4], 300)
    centres = [(y, x) for y in (75, 225) for x in (50, 150, 250)]
    np.testing.assert_allclose(boxes[:, :2], centres, atol=1e-4)


def test_another_input_changes_neither_sides_nor_steps_in_pixels():
    plain, wide = make_anchors(VOC, [2] * 6), make_anchors(VOC, [2] * 6, (180, 500))
    np.testing.assert_allclose(wide * [180, 500, 180, 500], plain * 300, atol=1e-4)
    pairs = VOC._replace(steps=((8, 8),) * 5 + ((90, 250),))
    centre = make_anchors(pairs, [2] * 6, (180, 500))[-1].reshape(2, 2).mean(axis=0)
    np.testing.assert_allclose(centre * [180, 500], [135, 375], atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": (8, 16)}, "steps has length 2, not 6, the number of feature maps"),
        ({"aspect_ratios": ((2,),)}, "aspect_ratios has length 1"),
        ({"max_percent": (10, 20, 37, 54, 71, 88)}, "level 0 are 30 and 30 pixels"),
        ({"min_percent": (0, 20, 37, 54, 71, 88)}, "level 0 are 0 and 60 pixels"),
        ({"steps": (8, 16, 32, 64, 100, 0)}, "step of level 5 is 0"),
    ],
)
def test_invalid_specifications_name_the_field(change, message):
    with pytest.raises(UserError, match=message):
        make_anchors(VOC._replace(**change), SSD_MAPS)


def test_a_model_with_another_number_of_maps_is_refused():
    with pytest.raises(UserError, match="not 5, the number of feature maps"):
        make_anchors(VOC, SSD_MAPS[:5])
