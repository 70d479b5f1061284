"""Training images that cannot be decoded: the run stops, or the next image replaces them."""

import cv2
import numpy as np
import pytest

from scratchdet_jax.data.loading import substituted_line
from scratchdet_jax.errors import UserError
from tests.data.batches import train_batches

BROKEN = (2, 3, 7)


class Source:
    """Eight images of one colour each, three of which are broken."""

    spec = "made:train"

    def __init__(self, broken=BROKEN):
        self._broken = broken

    def __len__(self):
        return 8

    def __getitem__(self, index):
        picture = np.full((6, 6, 3), 20 * index, np.uint8)
        data = (
            b"no picture" if index in self._broken else cv2.imencode(".png", picture)[1].tobytes()
        )
        return {
            "image": data,
            "orientation": 1,
            "boxes": np.float32([[0, 0, 1, 1]]),
            "labels": np.int32([index + 1]),
            "ignore": np.array([False]),
            "filename": f"{index}.png",
            "image_id": str(index),
        }

    def describe(self, index):
        return f"record {index} of {self.spec}"


def batches(count, substituted, start=0, process=0, processes=1, broken=BROKEN):
    loader = train_batches(
        Source(broken),
        batch_size=4,
        canvas=(6, 6),
        max_boxes=2,
        seed=3,
        threads=2,
        start_step=start,
        process_index=process,
        process_count=processes,
        substituted=substituted,
    )
    try:
        return [next(loader) for _ in range(count)]
    finally:
        loader.close()


def test_the_run_stops_and_names_the_record():
    with pytest.raises(UserError, match=r"[237]\.png, record [237] of made:train, cannot be dec"):
        batches(2, None)


def test_the_next_image_replaces_a_broken_one():
    substituted = {}
    whole = batches(6, None, broken=())
    found = batches(6, substituted)
    for expected, batch in zip(whole, found, strict=True):
        instead = [{2: 4, 3: 4, 7: 0}.get(int(i), int(i)) for i in expected["id"]]
        assert batch["id"].tolist() == instead
        assert batch["labels"][:, 0].tolist() == [i + 1 for i in instead]
        assert batch["image"][:, 0, 0, 0].tolist() == [20 * i for i in instead]
    assert sorted(substituted) == list(BROKEN)
    line = substituted_line(Source(), substituted)
    assert line.startswith("3 images of made:train could not be read") and "record 7" in line
    assert substituted_line(Source(), {}) == ""


def test_the_substitute_does_not_depend_on_processes_or_start():
    whole = batches(6, {})
    for process in (0, 1):
        rows = slice(2 * process, 2 * process + 2)
        part = batches(4, {}, start=2, process=process, processes=2)
        for expected, batch in zip(whole[2:], part, strict=True):
            for key in expected:
                np.testing.assert_array_equal(batch[key], expected[key][rows])


def test_a_source_of_broken_images_alone_is_refused():
    with pytest.raises(UserError, match="no image of made:train can be read"):
        batches(1, {}, broken=range(8))
