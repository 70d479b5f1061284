import types

import cv2
import numpy as np
import pytest

from scratchdet_jax.datasets.duplicates import signature
from scratchdet_jax.reports.doctor.splits import near_images, nested_splits
from scratchdet_jax.reports.doctor.study import Look


def study_of(first, second):
    """Two images that look alike, and an unlike one that is in val."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    picture = cv2.resize(noise, (80, 60), interpolation=cv2.INTER_CUBIC)
    other = np.ascontiguousarray(picture[:, ::-1])
    members = [("a.jpg", split, b"a") for split in first]
    members += [("b.jpg", split, b"b") for split in second]
    members.append(("c.jpg", "val", b"c"))
    empty = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    looks = [
        Look(split, i, name, content, (60, 80), False, *empty, (), "")
        for i, (name, split, content) in enumerate(members)
    ]
    first_of = {look.content: i for i, look in reversed(list(enumerate(looks)))}
    pictures = {b"a": picture, b"b": np.clip(picture, 2, 253), b"c": other}
    signatures = {i: signature(pictures[content]) for content, i in first_of.items()}
    return types.SimpleNamespace(looks=looks, signatures=signatures)


@pytest.mark.parametrize(
    ("first", "second", "across"),
    [
        (["train"], ["val"], True),
        (["train"], ["train"], False),
        (["train", "val"], ["val"], True),  # one of the two is in the other split, too
        (["train"], ["train", "val"], True),
        (["train", "trainval"], ["train", "trainval"], False),
        (["train", "trainval"], ["val", "trainval"], True),
    ],
)
def test_near_duplicates_across_splits_are_a_leak(first, second, across):
    study = study_of(first, second)
    if "trainval" in first:  # the union of train and val
        study.looks.append(study.looks[-1]._replace(split="trainval"))
    (pair,) = near_images(study, nested_splits(study.looks))
    assert pair["across_splits"] == across
