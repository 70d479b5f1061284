"""One pass over the records of a data set: what is kept of every image and box.

No picture is decoded here and none is kept; a second pass (`look_closer`) decodes some of them.
"""

import collections
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from scratchdet_jax.data import images
from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.tools.doctor.duplicates import Signature, signature
from scratchdet_jax.tools.doctor.fit import BoxTable

T, R = TypeVar("T"), TypeVar("R")

_BEYOND = 1e-4
"""Boxes may reach so far out of the image, in its sides: a twentieth of a pixel of 500."""
_SIGNATURE_SIDE = 72  # pixels; 8 × 9 and 16 × 16 are reduced from there


class BoxDefect(NamedTuple):
    """Something wrong with a box as it is stored.

    Attributes:
        kind: in words.
        image: index of the image in the census.
        detail: which box, and its numbers.
    """

    kind: str
    image: int
    detail: str


class Census(NamedTuple):
    """N images, split by split, and their K boxes.

    An image that is in several splits (trainval, say) occurs several times.

    Attributes:
        class_names: label i is class_names[i − 1].
        split_names: names of the splits.
        split: int32 [N], index into split_names.
        position: int32 [N], in the split.
        content: int32 [N], the same number for the same bytes.
        filenames: [N].
        sizes: int32 [N, 2], height and width as displayed; 0 where the header cannot be read.
        turned: bool [N], whether an EXIF turn is made.
        distinct: bool [N], the one occurrence that stands for a file name with its bytes.
        table: the usable boxes, as they are trained on; its sizes are the images' own.
        defects: of the boxes as stored, of distinct images.
        unreadable: [(image, reason)], headers that cannot be read, of distinct images.
    """

    class_names: tuple[str, ...]
    split_names: tuple[str, ...]
    split: np.ndarray
    position: np.ndarray
    content: np.ndarray
    filenames: list[str]
    sizes: np.ndarray
    turned: np.ndarray
    distinct: np.ndarray
    table: BoxTable
    defects: list[BoxDefect]
    unreadable: list[tuple[int, str]]


class Closer(NamedTuple):
    """What decoding showed of some images.

    Attributes:
        images: int64 [n], their indices in the census.
        signatures: by image, of those that can be decoded.
        broken: [(image, reason)], those that cannot be decoded whole.
    """

    images: np.ndarray
    signatures: dict[int, Signature]
    broken: list[tuple[int, str]]


class _Look(NamedTuple):
    filename: str
    digest: bytes
    size: tuple[int, int]
    turned: bool
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    defects: list[tuple[str, str]]
    problem: str


def take_census(splits: dict[str, DetectionSource], threads: int = 0) -> Census:
    """Reads every record of every split once."""
    names = tuple(splits)
    where = [(split, i) for split, name in enumerate(names) for i in range(len(splits[name]))]
    looks = ordered_map(lambda at: _look(splits[names[at[0]]], at[1]), where, threads)
    contents: dict[bytes, int] = {}
    kept, content = [], np.zeros(len(where), np.int32)
    for i, look in enumerate(_bar(looks, len(where), "reading")):
        content[i] = contents.setdefault(look.digest, len(contents))
        kept.append(look._replace(digest=b""))
    sizes = np.array([look.size for look in kept], np.int32).reshape(-1, 2)
    distinct = _distinct(
        [len(splits[names[split]]) for split, _ in where],
        [(look.filename, n) for look, n in zip(kept, content.tolist(), strict=True)],
    )
    return Census(
        class_names=splits[names[0]].class_names,
        split_names=names,
        split=np.array([split for split, _ in where], np.int32),
        position=np.array([i for _, i in where], np.int32),
        content=content,
        filenames=[look.filename for look in kept],
        sizes=sizes,
        turned=np.array([look.turned for look in kept], bool),
        distinct=distinct,
        table=_table(kept, sizes),
        defects=[
            BoxDefect(kind, i, detail)
            for i in np.flatnonzero(distinct).tolist()
            for kind, detail in kept[i].defects
        ],
        unreadable=[(i, kept[i].problem) for i in np.flatnonzero(distinct) if kept[i].problem],
    )


def look_closer(
    census: Census, splits: dict[str, DetectionSource], chosen: np.ndarray, threads: int = 0
) -> Closer:
    """Decodes the chosen images (indices in the census), whole, and takes their signatures."""
    cv2.setNumThreads(0)  # the threads here are enough
    sources = list(splits.values())

    def decode(i: int) -> tuple[int, Signature | str]:
        example = sources[census.split[i]][int(census.position[i])]
        try:
            images.check_complete(example["image"])
            small, _ = images.decode_to_canvas(
                example["image"], (_SIGNATURE_SIDE, _SIGNATURE_SIDE), example["orientation"]
            )
        except ValueError as error:
            return i, str(error)
        return i, signature(small)

    signatures, broken = {}, []
    looks = ordered_map(decode, chosen.tolist(), threads)
    for i, found in _bar(looks, len(chosen), "decoding"):
        if isinstance(found, str):
            broken.append((i, found))
        else:
            signatures[i] = found
    return Closer(chosen, signatures, broken)


def select_images(table: BoxTable, chosen: np.ndarray) -> tuple[BoxTable, np.ndarray]:
    """The table of some images only, in their order, and its boxes' indices in the whole one."""
    counts = np.diff(table.starts)[chosen]
    starts = np.concatenate([[0], np.cumsum(counts)])
    index = np.repeat(table.starts[chosen] - starts[:-1], counts) + np.arange(starts[-1])
    boxes = (values[index] for values in (table.boxes, table.labels, table.ignore))
    return BoxTable(*boxes, starts, table.sizes[chosen]), index


def without_ignored(table: BoxTable) -> tuple[BoxTable, np.ndarray]:
    """The table without ignored boxes, and its boxes' indices in the whole one."""
    index = np.flatnonzero(~table.ignore)
    counts = np.bincount(image_of_box(table)[index], minlength=len(table.sizes))
    starts = np.concatenate([[0], np.cumsum(counts)])
    boxes = (values[index] for values in (table.boxes, table.labels, table.ignore))
    return BoxTable(*boxes, starts, table.sizes), index


def image_of_box(table: BoxTable) -> np.ndarray:
    """The image of each box, int64 [K]."""
    return np.repeat(np.arange(len(table.sizes)), np.diff(table.starts))


def size_on_canvas(sizes: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """Sizes int [N, 2] as the loader reduces them to fit the canvas; never enlarged."""
    sizes = np.maximum(sizes, 1)
    scale = np.minimum(1.0, np.min(np.asarray(canvas) / sizes, axis=1, keepdims=True))
    return np.clip(np.round(sizes * scale), 1, canvas).astype(np.int32)


def box_defects(boxes: np.ndarray, labels: np.ndarray) -> list[tuple[str, str]]:
    """What is wrong with the boxes of one image, as stored: (kind, detail).

    Args:
        boxes: float [n, 4], (ymin, xmin, ymax, xmax), normalised, unchecked.
        labels: int [n], 1…C; others are no class.
    """
    found = []
    for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        ymin, xmin, ymax, xmax = box
        text = f"box {i + 1}: y {ymin:.4g}…{ymax:.4g}, x {xmin:.4g}…{xmax:.4g}"
        if not np.isfinite(box).all():
            found.append(("coordinates that are no numbers", text))
        elif ymin > ymax or xmin > xmax:
            found.append(("swapped corners", text))
        elif ymin == ymax or xmin == xmax:
            found.append(("no area", text))
        elif max(ymin, xmin) >= 1 or min(ymax, xmax) <= 0:
            found.append(("wholly outside the image", text))
        elif box.min() < -_BEYOND or box.max() > 1 + _BEYOND:
            found.append(("reaches out of the image", text))
        if label < 1:
            found.append(("no class", text))
    copies = collections.defaultdict(list)
    for i, box in enumerate(boxes):
        copies[tuple(box.tolist())].append(i)
    for same in copies.values():
        for a, b in itertools.pairwise(same):
            kind = "the same box twice" + ("" if labels[a] == labels[b] else ", of two classes")
            found.append((kind, f"boxes {a + 1} and {b + 1}"))
    return found


def ordered_map(function: Callable[[T], R], items: Sequence[T], threads: int = 0) -> Iterator[R]:
    """`map` on threads, in order, a few items ahead of the consumer; 0 threads = one a core."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        threads = threads or len(os.sched_getaffinity(0))
    threads = threads or os.cpu_count() or 1
    rest: Iterable[T] = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        ahead = collections.deque(
            pool.submit(function, item) for item in itertools.islice(rest, 8 * threads)
        )
        try:
            while ahead:
                result = ahead.popleft().result()
                ahead.extend(pool.submit(function, item) for item in itertools.islice(rest, 1))
                yield result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _bar(items: Iterable[T], total: int, title: str) -> Iterable[T]:
    return tqdm(items, total=total, desc=title, unit="image", leave=False, disable=None)


def _look(source: DetectionSource, index: int) -> _Look:
    example = source[index]
    encoded, orientation = example["image"], example["orientation"]
    objects = source.record(index)["objects"]
    raw = np.asarray(objects["bbox"], np.float32).reshape(-1, 4)
    labels = np.asarray(objects["label"], np.int64).reshape(-1) + 1
    size, problem = (0, 0), ""
    try:
        size = images.read_header(encoded).size
    except ValueError as error:
        problem = str(error)
    if orientation >= 5:  # a quarter turn
        size = size[::-1]
    return _Look(
        filename=example["filename"],
        digest=hashlib.blake2b(encoded, digest_size=16).digest(),
        size=size,
        turned=orientation != 1,
        boxes=example["boxes"],
        labels=example["labels"],
        ignore=example["ignore"],
        defects=box_defects(raw, labels),
        problem=problem,
    )


def _distinct(split_sizes: list[int], identities: list[tuple[str, int]]) -> np.ndarray:
    """Marks one occurrence of each image, that in the smallest split: train rather than trainval.

    Args:
        split_sizes: [N], images in the split of each occurrence.
        identities: [N], file name and content.
    """
    chosen: dict[tuple[str, int], int] = {}
    for i in np.argsort(split_sizes, kind="stable").tolist():
        chosen.setdefault(identities[i], i)
    distinct = np.zeros(len(identities), bool)
    distinct[list(chosen.values())] = True
    return distinct


def _table(looks: list[_Look], sizes: np.ndarray) -> BoxTable:
    counts = [len(look.labels) for look in looks]
    return BoxTable(
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *(look.boxes for look in looks)]),
        labels=np.concatenate([np.zeros(0, np.int32), *(look.labels for look in looks)]),
        ignore=np.concatenate([np.zeros(0, bool), *(look.ignore for look in looks)]),
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        sizes=sizes,
    )
