import numpy as np

from scratchdet_jax.data.images import fit_to_canvas
from scratchdet_jax.reports.doctor.boxes import box_defects
from scratchdet_jax.reports.doctor.study import Look, distinct_images, size_on_canvas


def test_kinds_of_box_defects():
    nan = float("nan")
    boxes = np.array(
        [
            [0.1, 0.1, 0.5, 0.5],
            [0.0, 0.0, 1.0, 1.0],
            [0.1, nan, 0.5, 0.5],
            [0.5, 0.1, 0.2, 0.5],
            [0.2, 0.3, 0.2, 0.6],
            [1.1, 0.1, 1.5, 0.5],
            [-0.5, 0.1, 0.0, 0.5],
            [0.5, 0.5, 1.01, 0.6],
            [0.3, 0.1, 1.00001, 0.2],
        ],
        np.float32,
    )
    labels = np.array([1, 2, 1, 1, 1, 1, 1, 1, 0])
    found = [
        (kind, int(detail.split()[1].rstrip(":"))) for kind, detail in box_defects(boxes, labels)
    ]
    assert found == [
        ("coordinates that are no numbers", 3),
        ("swapped corners", 4),
        ("no area", 5),
        ("wholly outside the image", 6),
        ("wholly outside the image", 7),
        ("reaches out of the image", 8),
        ("no class", 9),
    ]


def test_the_smallest_split_represents_an_image():
    def look(split, name, content):
        return Look(split, 0, name, content, (1, 1), False, (), (), (), (), "")

    looks = [look("large", "a", b"0"), look("large", "b", b"1"), look("large", "d", b"1")]
    looks += [look("small", "a", b"0"), look("small", "c", b"1")]
    assert distinct_images(looks).tolist() == [1, 2, 3, 4]


def test_size_on_canvas_matches_the_loader():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 400, (60, 2))
    found = size_on_canvas(sizes, (120, 200))
    for size, own in zip(sizes, found, strict=True):
        assert fit_to_canvas(np.zeros((*size, 3), np.uint8), (120, 200)).shape[:2] == tuple(own)
