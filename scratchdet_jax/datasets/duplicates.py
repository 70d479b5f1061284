"""Near-duplicates: the same picture re-encoded, resized or slightly retouched.

They are found by a 64-bit difference hash and confirmed on a 16 × 16 thumbnail, because the hash
alone confuses photos of small objects on plain backgrounds. Pictures that were turned, mirrored or
cropped are not recognised.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from scratchdet_jax.data.images import decode_to_canvas

HASH_BITS = 4
"""Hashes of near-duplicates differ in at most so many of 64 bits."""
COLOUR_LEVELS = 6.0
"""Thumbnails of near-duplicates differ by at most so much on average, of 255."""
MOST_PAIRS = 20_000
"""`near_pairs` returns no more: so many near-duplicates are a film, not a set of photos."""

_SIDE = 72  # pixels; 8 × 9 and 16 × 16 are reduced from there
_THUMBNAIL = 16
_AT_A_TIME = 20_000  # thumbnails that are compared


class Signature(NamedTuple):
    """What identifies a picture: its difference hash, uint64, and uint8 [16, 16, 3]."""

    hash: np.uint64
    thumbnail: np.ndarray


def read_signature(encoded: bytes, orientation: int) -> Signature:
    """Computes an encoded image's signature, as displayed after the turn `orientation` (1…8).

    Raises:
        ValueError: it cannot be decoded.
    """
    small, _ = decode_to_canvas(encoded, (_SIDE, _SIDE), orientation)
    return signature(small)


def signature(image: np.ndarray) -> Signature:
    """Computes the signature of an image uint8 [h, w, 3], RGB.

    Bit (row, column) of the hash says whether brightness rises from one column to the next of the
    image reduced to 8 × 9 (dHash, N. Krawetz 2013).
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    bits = np.packbits(small[:, 1:] > small[:, :-1])
    thumbnail = cv2.resize(image, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    return Signature(bits.view(">u8")[0].astype(np.uint64), thumbnail)


def near_pairs(signatures: Sequence[Signature]) -> list[tuple[int, int, int]]:
    """Finds all pairs (i, j, differing bits), i < j, of near signatures; nearest first.

    The time is quadratic, but only 8 bytes are read per comparison: seconds for 20,000 images. At
    most MOST_PAIRS are returned.
    """
    hashes, thumbnails = _stacked(signatures)
    pairs: list[tuple[int, int, int]] = []
    for i in range(len(hashes)):
        near = _near(thumbnails, i, _alike(hashes, i))
        bits = np.bitwise_count(hashes[i] ^ hashes[near])
        pairs += zip(itertools.repeat(i), near.tolist(), bits.tolist())
        if len(pairs) >= MOST_PAIRS:
            break
    return sorted(pairs[:MOST_PAIRS], key=lambda pair: (pair[2], pair[0], pair[1]))


def near_groups(signatures: Sequence[Signature]) -> list[list[int]]:
    """Groups what near pairs connect, directly or through others; every index is in one.

    Unlike `near_pairs` it misses none, however many there are. Groups are in the order of their
    first members.
    """
    hashes, thumbnails = _stacked(signatures)
    group = np.arange(len(hashes))
    for i in range(len(hashes)):
        alike = _alike(hashes, i)
        near = _near(thumbnails, i, alike[group[alike] != group[i]])
        if len(near):
            group[np.isin(group, group[near])] = group[i]
    members: dict[int, list[int]] = {}
    for i, number in enumerate(group.tolist()):
        members.setdefault(number, []).append(i)
    return list(members.values())


def _stacked(signatures: Sequence[Signature]) -> tuple[np.ndarray, np.ndarray]:
    hashes = np.array([s.hash for s in signatures], np.uint64)
    thumbnails = np.array([s.thumbnail for s in signatures], np.int16)
    return hashes, thumbnails


def _alike(hashes: np.ndarray, i: int) -> np.ndarray:
    """Returns which of the pictures after `i` have a near hash."""
    return i + 1 + np.flatnonzero(np.bitwise_count(hashes[i] ^ hashes[i + 1 :]) <= HASH_BITS)


def _near(thumbnails: np.ndarray, i: int, others: np.ndarray) -> np.ndarray:
    """Returns which of the `others` have a thumbnail near that of picture `i`."""
    if not len(others):
        return others
    parts = np.array_split(others, 1 + len(others) // _AT_A_TIME)
    distances = [np.abs(thumbnails[i] - thumbnails[part]).mean(axis=(1, 2, 3)) for part in parts]
    return others[np.concatenate(distances) <= COLOUR_LEVELS]
