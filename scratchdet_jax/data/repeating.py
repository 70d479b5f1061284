"""Repeat-factor sampling (LVIS, Gupta et al. 2019): images of rare classes come more often."""

import bisect
import threading
from collections.abc import Sequence

import numpy as np

from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.progress import track

_ROUNDING = 1  # keys these random numbers apart from the order's


def class_factors(labels: Sequence[np.ndarray], class_count: int, threshold: float) -> np.ndarray:
    """Returns the repeat factor of each class: r(c) = max(1, √(t / f(c))).

    Args:
        labels: of each image, int [n], 1…C.
        class_count: C.
        threshold: t; f(c) is the share of the images that have a box of class c.

    Returns:
        float64 [C]; 1 for a class without a box.
    """
    images = np.zeros(class_count + 1)
    for own in labels:
        images[np.unique(own)] += 1
    shares = images[1:] / len(labels)
    factors = np.sqrt(threshold / np.where(shares > 0, shares, 1.0))
    return np.where(shares > 0, np.maximum(factors, 1.0), 1.0)


def image_factors(labels: Sequence[np.ndarray], factors: np.ndarray) -> np.ndarray:
    """Returns each image's repeat factor, float64 [n]: its classes' largest; 1 without a box."""
    return np.array([max(factors[np.unique(own) - 1], default=1.0) for own in labels])


def labels_of(source: DetectionSource, with_ignored: bool) -> list[np.ndarray]:
    """Returns the labels of each image; reads every record, decodes none."""
    labels = []
    for i in track(range(len(source)), len(source), "counting classes", "image"):
        example = source[i]
        labels.append(example["labels"] if with_ignored else example["labels"][~example["ignore"]])
    return labels


def random_state(*key: int) -> np.random.RandomState:
    """Seeds random numbers by key; RandomState is frozen, so all NumPy versions agree."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(key)))


class Repeats:
    """How often each image is in each epoch, and where each epoch begins.

    In an epoch, an image of factor r occurs ⌊r⌋ times, and once more with the probability r − ⌊r⌋,
    drawn by (seed, epoch). So epochs have different lengths, and the place of a position is known
    after drawing those before it: one random number for each image and epoch.
    """

    def __init__(self, factors: np.ndarray, seed: int) -> None:
        """Takes `factors`: float64 [n], of each image."""
        self._whole = np.floor(factors).astype(np.int64)
        self._part, self._seed = factors - self._whole, seed
        self._ends = [0]  # of the epochs whose length is known, after the 0 where the first begins
        self._lock = threading.Lock()

    def indices(self, epoch: int) -> np.ndarray:
        """Returns the images of an epoch in split order, each as often as it occurs."""
        random = random_state(self._seed, epoch, _ROUNDING).random_sample(len(self._part))
        return np.repeat(np.arange(len(self._part)), self._whole + (random < self._part))

    def locate(self, position: int) -> tuple[int, int]:
        """Finds the epoch of a position of the endless stream, and its place in that epoch."""
        with self._lock:
            while self._ends[-1] <= position:
                self._ends.append(self._ends[-1] + len(self.indices(len(self._ends) - 1)))
            epoch = bisect.bisect_right(self._ends, position) - 1
            return epoch, position - self._ends[epoch]


def repeated_line(factors: np.ndarray, total: float, class_names: Sequence[str]) -> str:
    """Returns a sentence about what is repeated.

    `total` is the mean number of images of an epoch.
    """
    rare = [(r, name) for r, name in zip(factors, class_names, strict=True) if r > 1]
    rare.sort(reverse=True)
    named = ", ".join(f"{name} {r:.3g}x" for r, name in rare[:5]) or "no class"
    more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
    return f"an epoch has {total:,.0f} images on average; repeated classes: {named}{more}"
