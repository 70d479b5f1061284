"""Near duplicates: the same picture stored with other bytes.

They are found by a 64-bit difference hash and confirmed on a 16 × 16 thumbnail, because the hash
alone confuses photos of a small object on a plain background. This finds pictures that were
re-encoded, resized or slightly retouched, but not rotated, mirrored or cropped ones.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

HASH_BITS = 4
"""Hashes of near duplicates differ in at most this many of 64 bits."""
COLOUR_LEVELS = 6.0
"""Thumbnails of near duplicates differ by at most this much of 255 on average."""
_THUMBNAIL = 16
_ROWS_AT_A_TIME = 256
MOST_PAIRS = 20_000
"""The search stops here: this many near duplicates are a film, not a set of photos."""


class Signature(NamedTuple):
    """What identifies an image: its difference hash, and a thumbnail uint8 [16, 16, 3]."""

    hash: np.uint64
    thumbnail: np.ndarray


def signature(image: np.ndarray) -> Signature:
    """The signature of an image uint8 [h, w, 3], RGB.

    Bit (row, column) of the hash is set if brightness rises from this column to the next in the
    image reduced to 8 × 9 (dHash, N. Krawetz 2013).
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    bits = np.packbits(small[:, 1:] > small[:, :-1])
    thumbnail = cv2.resize(image, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    return Signature(bits.view(">u8")[0].astype(np.uint64), thumbnail)


def near_pairs(signatures: Sequence[Signature]) -> list[tuple[int, int, int]]:
    """All pairs (i, j, differing bits), i < j, of signatures that are near; nearest first.

    Time is quadratic, at 8 bytes per comparison: seconds for 20,000 images. At most MOST_PAIRS
    are returned.
    """
    if len(signatures) < 2:
        return []
    hashes = np.array([s.hash for s in signatures], np.uint64)
    thumbnails = np.stack([s.thumbnail for s in signatures]).astype(np.int16)
    pairs: list[tuple[int, int, int]] = []
    for first in range(0, len(hashes), _ROWS_AT_A_TIME):
        rows = hashes[first : first + _ROWS_AT_A_TIME]
        bits = np.bitwise_count(rows[:, None] ^ hashes[None, first:])
        i, j = np.nonzero(np.triu(bits <= HASH_BITS, k=1))
        for part in range(0, len(i), MOST_PAIRS):
            a, b = i[part : part + MOST_PAIRS], j[part : part + MOST_PAIRS]
            apart = np.abs(thumbnails[a + first] - thumbnails[b + first]).mean(axis=(1, 2, 3))
            near = apart <= COLOUR_LEVELS
            found = (a[near] + first, b[near] + first, bits[a, b][near])
            pairs += zip(*(values.tolist() for values in found), strict=True)
            if len(pairs) >= MOST_PAIRS:
                return sorted(pairs[:MOST_PAIRS], key=_by_distance)
    return sorted(pairs, key=_by_distance)


def _by_distance(pair: tuple[int, int, int]) -> tuple[int, int, int]:
    return pair[2], pair[0], pair[1]
