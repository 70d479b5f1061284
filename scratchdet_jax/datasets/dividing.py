"""Divides a split into train, val and test: stratified, with near-duplicates on one side."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from scratchdet_jax.datasets.choices import Choices
from scratchdet_jax.datasets.duplicates import Signature, near_groups, read_signature
from scratchdet_jax.datasets.objects import AHEAD, Contents, UsableImage, read_unchanged
from scratchdet_jax.datasets.untrusted import as_text
from scratchdet_jax.errors import UserError, plural
from scratchdet_jax.progress import map_ahead, track

_PASSES = 20  # of the local search; it usually ends after a few
_GROUPS_LISTED = 100  # groups of near-duplicates whose names are recorded


class Item(NamedTuple):
    """Images that stay together.

    Attributes:
        key: identifies the item whatever the order of the input.
        images: how many they are.
        classes: the number of its images that show each class; "" stands for none.
    """

    key: str
    images: int
    classes: Mapping[str, int]


def divide(contents: Contents, choices: Choices, source: str) -> Contents:
    """Divides one split by `choices.val` and `choices.test`; the rest of it becomes train.

    Images that are near-duplicates, directly or through others, stay together. The result does not
    depend on the order of the images.

    Raises:
        UserError: it is not clear which split is meant, a new split has the name of another one, or
            there are too few images that are not near-duplicates.
    """
    if not choices.divides or not contents.splits:
        return contents
    divided = _divided_split(contents, choices, source)
    images = contents.splits[divided]
    shares = {"val": choices.val, "test": choices.test}
    shares = {"train": 1 - sum(shares.values()), **{k: v for k, v in shares.items() if v}}
    others = {split: members for split, members in contents.splits.items() if split != divided}
    if taken := [split for split in shares if split in others]:
        raise UserError(
            f"{source} has a split {taken[0]} beside {divided}: to divide {divided} as well, "
            f"prepare it without {taken[0]}"
        )

    def read(image: UsableImage) -> Signature:
        return read_signature(read_unchanged(image), image.header.orientation)

    signatures = track(map_ahead(read, images, AHEAD), len(images), "comparing images", "image")
    groups = near_groups(list(signatures))
    items = [_item([images[i] for i in group]) for group in groups]
    places = assign(items, shares, choices.seed)
    place_of = {i: place for group, place in zip(groups, places, strict=True) for i in group}
    parts = {
        name: [image for i, image in enumerate(images) if place_of[i] == name] for name in shares
    }
    together = sorted(
        (sorted(images[i].filename for i in group) for group in groups if len(group) > 1),
        key=lambda names: (-len(names), names),
    )
    left_out = {k: n for k, n in contents.left_out.items() if k != divided}
    return contents._replace(
        splits={**parts, **others},
        left_out={**dict.fromkeys(parts, 0), **left_out, "train": contents.left_out[divided]},
        notes=[*contents.notes, *_notes(divided, parts, others, choices, together)],
        division={
            "from": divided,
            "seed": choices.seed,
            "shares": {name: round(share, 9) for name, share in shares.items()},
            "images": {name: len(members) for name, members in parts.items()},
            "groups": len(groups),
            "near_duplicates": together[:_GROUPS_LISTED],
        },
    )


def assign(items: Sequence[Item], shares: Mapping[str, float], seed: int) -> list[str]:
    """Chooses a split for every item, so that all images and each class are in proportion.

    Items with rare classes are placed first, each where it brings the counts closest to the shares;
    then single items are moved as long as that improves them. The order of the items has no
    influence, only their contents, their keys and the seed.

    Args:
        items: what is divided.
        shares: positive, by split; their sum is 1. Splits that come first are filled first if there
            are too few items.
        seed: decides between equal items.

    Raises:
        UserError: there are fewer items than splits.
    """
    if len(items) < len(shares):
        raise UserError(
            f"{plural(sum(item.images for item in items), 'image')} cannot be divided into "
            f"{' and '.join(shares)}: "
            + ("all are" if len(items) == 1 else f"they are {len(items)} groups of")
            + " near-duplicates of one another, which stay together; add other images, or prepare "
            "the evaluation split from a folder of its own"
        )
    counts = _counts(items)
    ranks = [hashlib.sha256(f"{seed}:{item.key}".encode()).digest() for item in items]
    present = counts[:, 1:] > 0
    rarity = np.where(present, counts[:, 1:].sum(axis=0), np.inf).min(axis=1)
    order = sorted(
        range(len(items)), key=lambda i: (rarity[i], -counts[i, 0], ranks[i], items[i].key)
    )
    division = _Division(counts, list(shares.values()))
    for i in order:
        division.place(i, int(np.argmin(division.costs(i))))
    for _ in range(_PASSES):
        if not sum(division.improve(i) for i in order):
            break
    division.fill_empty(order)
    names = list(shares)
    return [names[place] for place in division.places]


class _Division:
    """Items in splits, and how far the counts are from the shares.

    The cost is the chi-square distance of the counts of each class from their shares, with the
    number of all images counted like as many classes as there are.
    """

    def __init__(self, counts: np.ndarray, shares: Sequence[float]) -> None:
        """Takes `counts`: [n, 1 + C], images of each item, in all and by class."""
        self._counts = counts
        self._expected = np.outer(shares, counts.sum(axis=0))  # [splits, 1 + C]
        weights = np.ones(counts.shape[1])
        weights[0] = max(1, counts.shape[1] - 1)
        self._weights = weights / np.maximum(self._expected, 1e-9)
        self._found = np.zeros_like(self._expected)
        self.places = np.full(len(counts), -1)

    def costs(self, i: int) -> np.ndarray:
        """Computes the rounded growth of the cost if the item is added to each split."""
        added, apart = self._counts[i], self._found - self._expected
        growth = (self._weights * (2 * apart + added) * added).sum(axis=1)
        return np.round(growth, 9)

    def place(self, i: int, split: int) -> None:
        """Adds the item to a split, after taking it from its present one."""
        if self.places[i] >= 0:
            self._found[self.places[i]] -= self._counts[i]
        self._found[split] += self._counts[i]
        self.places[i] = split

    def improve(self, i: int) -> bool:
        """Moves the item to a better split if there is one; returns whether it was moved."""
        costs = self._costs_of_moves(i)
        best = int(np.argmin(costs))
        if costs[best] > costs[self.places[i]] - 1e-6:
            return False
        self.place(i, best)
        return True

    def fill_empty(self, order: Sequence[int]) -> None:
        """Gives each empty split the item whose move costs least."""
        for split in range(len(self._expected)):
            if not (self.places == split).any():
                spare = [i for i in order if (self.places == self.places[i]).sum() > 1]
                costs = {i: self._costs_of_moves(i) for i in spare}
                best = min(spare, key=lambda i: costs[i][split] - costs[i][self.places[i]])
                self.place(best, split)

    def _costs_of_moves(self, i: int) -> np.ndarray:
        """Computes `costs` as if the item were in no split."""
        present = int(self.places[i])
        self._found[present] -= self._counts[i]
        costs = self.costs(i)
        self._found[present] += self._counts[i]
        return costs


def _counts(items: Sequence[Item]) -> np.ndarray:
    """Counts the images of each item, [n, 1 + C]: all, and by class ("no class" is a class)."""
    names = sorted({name for item in items for name in item.classes})
    rows = [[item.images, *(item.classes.get(name, 0) for name in names)] for item in items]
    return np.array(rows, float)


def _divided_split(contents: Contents, choices: Choices, source: str) -> str:
    names = list(contents.splits)
    if choices.divided in names:
        return choices.divided
    if choices.divided or len(names) > 1:
        raise UserError(
            f"{source} has the {'split' if len(names) == 1 else 'splits'} {', '.join(names)}: name "
            f"the one that --val and --test divide, such as --from={names[-1]}"
        )
    return names[0]


def _item(images: Sequence[UsableImage]) -> Item:
    classes: dict[str, int] = {}
    for image in images:
        for name in {o.name for o in image.objects} or {""}:
            classes[name] = classes.get(name, 0) + 1
    keys = (f"{as_text(os.path.relpath(i.path, i.root))}\0{i.image_id}" for i in images)
    return Item(min(keys), len(images), classes)


def _notes(
    divided: str,
    parts: Mapping[str, Sequence[UsableImage]],
    others: Mapping[str, Sequence[UsableImage]],
    choices: Choices,
    together: Sequence[Sequence[str]],
) -> list[str]:
    shares = [f"--{k}={v:g}" for k, v in (("val", choices.val), ("test", choices.test)) if v]
    counts = ", ".join(f"{name} {len(members):,}" for name, members in parts.items())
    notes = [f"{divided} is divided by {' '.join(shares)} --seed={choices.seed}: {counts} images"]
    if together:
        count = sum(map(len, together))
        notes.append(
            f"near-duplicates stay together: {plural(count, 'image')} in "
            f"{plural(len(together), 'group')}, the largest of {len(together[0]):,}"
        )
    everywhere = {o.name for members in parts.values() for i in members for o in i.objects}
    for name, members in parts.items():
        missing = sorted(everywhere - {o.name for image in members for o in image.objects})
        if missing:
            classes = f"class{'es' * (len(missing) > 1)} {', '.join(missing)}"
            notes.append(f"{name} has no image with the {classes}")
    for other, members in others.items():
        paths = {image.path for image in members}
        for name in ("val", "test"):
            shared = sum(image.path in paths for image in parts.get(name, ()))
            if shared:
                notes.append(f"{plural(shared, 'image')} of {name} also in {other}")
    return notes
