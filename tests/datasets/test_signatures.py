import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchdet_jax.datasets import duplicates as signatures_module
from scratchdet_jax.datasets.duplicates import Signature, near_pairs, signature


def picture(seed, size=(120, 160)):
    """Smooth blobs of colour, like a photo seen by a coarse hash."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)


def reencoded(image, quality):
    data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].copy()


def slow_hash(image):
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    bits = ""
    for row in range(8):
        for column in range(8):
            bits += "1" if small[row, column + 1] > small[row, column] else "0"
    return int(bits, 2)


@pytest.mark.parametrize("seed", range(5))
def test_the_hash_encodes_rising_brightness(seed):
    assert int(signature(picture(seed)).hash) == slow_hash(picture(seed))


@pytest.mark.parametrize("seed", range(8))
def test_reencoded_and_resized_pictures_are_near_and_others_are_not(seed):
    image = picture(seed)
    changed = [
        reencoded(image, 30),
        cv2.resize(image, (333, 250), interpolation=cv2.INTER_CUBIC),
        cv2.resize(image, (80, 60), interpolation=cv2.INTER_AREA),
        np.clip(image.astype(int) + 3, 0, 255).astype(np.uint8),
    ]
    others = [picture(seed + 100), image[:, ::-1].copy(), 255 - image]
    signatures = [signature(i) for i in (image, *changed, *others)]
    found = {(a, b) for a, b, _ in near_pairs(signatures) if a == 0}
    assert found == {(0, i) for i in range(1, len(changed) + 1)}


def test_an_object_on_another_plain_background_is_not_a_duplicate():
    """The hashes are equal; the thumbnails differ."""
    pictures = []
    for ground in ((90, 120, 170), (60, 130, 40)):
        image = np.full((90, 120, 3), ground, np.uint8)
        image[40:50, 55:65] = 20
        pictures.append(signature(image))
    assert pictures[0].hash == pictures[1].hash
    assert near_pairs(pictures) == []


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.sampled_from([2, 7, 256]))
def test_all_near_pairs_are_found_and_no_others(seed, count, rows):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2**64, 4, np.uint64)
    flips = np.uint64(1) << rng.integers(0, 64, (count, 3), np.uint64)
    hashes = base[rng.integers(0, 4, count)] ^ np.bitwise_xor.reduce(flips, axis=1)
    levels = rng.integers(0, 3, count) * 5
    signatures = [
        Signature(h, np.full((16, 16, 3), n, np.uint8)) for h, n in zip(hashes, levels, strict=True)
    ]
    expected = set()
    for i in range(count):
        for j in range(i + 1, count):
            bits = bin(int(hashes[i]) ^ int(hashes[j])).count("1")
            if bits <= 4 and abs(int(levels[i]) - int(levels[j])) <= 6:
                expected.add((i, j, bits))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signatures_module, "_AT_A_TIME", rows)
        found = near_pairs(signatures)
    assert len(found) == len(expected)
    assert set(found) == expected
    assert [bits for *_, bits in found] == sorted(bits for *_, bits in found)


def test_the_number_of_pairs_is_limited(monkeypatch):
    monkeypatch.setattr(signatures_module, "MOST_PAIRS", 100)
    assert len(near_pairs([signature(picture(0))] * 60)) == 100
