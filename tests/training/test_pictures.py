"""Pictures of an evaluation in TensorBoard's files; a failure of theirs ends nothing."""

import struct

import cv2
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from scratchdet_jax.evaluation import evaluator
from tests.training.small_run import assert_same_run, small_config, train


def pictures(workdir):
    """(step, tag) → RGB pixels, from the events' records: length, checksum, message, checksum."""
    found = {}
    for path in workdir.glob("events.out.tfevents.*"):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + length])
            place += length + 16
            for value in event.summary.value:
                if value.HasField("image"):
                    encoded = np.frombuffer(value.image.encoded_image_string, np.uint8)
                    image = cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1]
                    found[event.step, value.tag] = image
    return found


@pytest.mark.slow  # trains
def test_the_same_images_are_shown_after_each_evaluation(tmp_path, monkeypatch, capsys):
    plain = train(small_config(tmp_path, monkeypatch), tmp_path / "plain")
    assert pictures(tmp_path / "plain") == {}

    drawn = []

    def draw(image, boxes, labels, scores, names, *, ground_truth):
        drawn.append((image.shape, len(labels), ground_truth))
        return original(image, boxes, labels, scores, names, ground_truth=ground_truth)

    original = evaluator.draw_detections
    monkeypatch.setattr(evaluator, "PICTURED_SCORE", 0.0)
    monkeypatch.setattr(evaluator, "draw_detections", draw)
    config = small_config(tmp_path, monkeypatch, **{"eval.log_pictures": 2})
    shown = train(config, tmp_path / "shown")
    assert_same_run((shown, tmp_path / "shown"), (plain, tmp_path / "plain"))
    found = pictures(tmp_path / "shown")
    assert sorted({step for step, _ in found}) == [2, 4]
    tags = {tag for _, tag in found}
    assert len(tags) == 2
    assert len(found) == len(drawn) == 4
    for tag in tags:
        assert np.any(found[2, tag] != found[4, tag])  # other detections on the same image
    # The images are 128 × 128 and the canvas is 64 × 64; the boxes follow.
    for shape, count, truth in drawn:
        assert shape == (64, 64, 3)
        assert count > 0
        assert 10 < truth.boxes_pixels.max() <= 64

    monkeypatch.setattr(evaluator, "draw_detections", lambda *arguments, **more: 1 / 0)
    capsys.readouterr()
    broken = train(config, tmp_path / "broken")
    assert_same_run((broken, tmp_path / "broken"), (plain, tmp_path / "plain"))
    told = capsys.readouterr().err
    assert told.count("warning: the pictures of step 2 failed (") == 1
    assert pictures(tmp_path / "broken") == {}
