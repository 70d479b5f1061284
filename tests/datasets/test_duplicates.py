import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchdet_jax.datasets import duplicates
from scratchdet_jax.datasets.duplicates import (
    Signature,
    near_groups,
    near_pairs,
    read_signature,
    signature,
)


def picture(seed, size=(120, 160)):
    """Smooth blobs of colour: what a photo looks like to a coarse hash."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)


def encoded(image, quality=95):
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def random_signatures(seed, count):
    """A few base hashes with a few flipped bits, on flat thumbnails of three levels."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2**64, 4, np.uint64)
    flips = np.uint64(1) << rng.integers(0, 64, (count, 3), np.uint64)
    hashes = base[rng.integers(0, 4, count)] ^ np.bitwise_xor.reduce(flips, axis=1)
    levels = rng.integers(0, 3, count) * 5
    return [
        Signature(h, np.full((16, 16, 3), n, np.uint8)) for h, n in zip(hashes, levels, strict=True)
    ]


def slow_pairs(signatures):
    pairs = set()
    for i, a in enumerate(signatures):
        for j, b in enumerate(signatures[:i]):
            bits = bin(int(a.hash) ^ int(b.hash)).count("1")
            apart = np.abs(a.thumbnail.astype(float) - b.thumbnail).mean()
            if bits <= 4 and apart <= 6:
                pairs.add((j, i, bits))
    return pairs


def slow_groups(count, pairs):
    groups = [{i} for i in range(count)]
    for i, j, _ in pairs:
        joined = [g for g in groups if i in g or j in g]
        groups = [g for g in groups if g not in joined] + [set().union(*joined)]
    return {frozenset(g) for g in groups}


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.sampled_from([2, 7, 256]))
def test_pairs_and_groups_are_those_of_the_slow_search(seed, count, rows):
    signatures = random_signatures(seed, count)
    pairs = slow_pairs(signatures)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_AT_A_TIME", rows)
        found = near_pairs(signatures)
    assert set(found) == pairs
    assert len(found) == len(pairs)
    groups = near_groups(signatures)
    assert sorted(i for group in groups for i in group) == list(range(count))
    assert {frozenset(group) for group in groups} == slow_groups(count, pairs)
    assert groups == sorted(groups)


def test_groups_are_complete_where_pairs_are_cut(monkeypatch):
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 100)
    film = [signature(picture(0))] * 60
    assert len(near_pairs(film)) == 100
    assert near_groups([*film, signature(picture(1))]) == [list(range(60)), [60]]


def test_a_group_connects_images_that_are_near_only_through_others():
    chain = [
        Signature(np.uint64((1 << 3 * i) - 1), np.zeros((16, 16, 3), np.uint8)) for i in range(8)
    ]
    assert len(near_pairs(chain)) == 7
    assert near_groups(chain[::2]) == [[0], [1], [2], [3]]
    assert near_groups(chain) == [list(range(8))]


@pytest.mark.parametrize("seed", range(4))
def test_the_signature_of_a_file_survives_another_quality_and_size(seed):
    image = picture(seed)
    larger = cv2.resize(image, (480, 360), interpolation=cv2.INTER_CUBIC)
    files = [encoded(image), encoded(image, 30), encoded(larger), encoded(picture(seed + 50))]
    assert near_groups([read_signature(data, 1) for data in files]) == [[0, 1, 2], [3]]
    turned = read_signature(encoded(np.rot90(image).copy()), 6)  # turned back when displayed
    assert near_groups([read_signature(files[0], 1), turned]) == [[0, 1]]
