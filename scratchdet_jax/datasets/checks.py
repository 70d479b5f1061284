"""Decodes every image once, in parallel."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from scratchdet_jax.data.images import ImageHeader, check_complete, read_header
from scratchdet_jax.datasets.defects import Kind
from scratchdet_jax.datasets.untrusted import (
    MAX_IMAGE_BYTES,
    OutsideFolderError,
    Stamp,
    read_stamped,
)
from scratchdet_jax.progress import track

T = TypeVar("T")
R = TypeVar("R")


class Intact(NamedTuple):
    """An image file in the folder `root` that can be decoded whole."""

    root: Path
    stamp: Stamp
    header: ImageHeader


class Broken(NamedTuple):
    """An image file that cannot be used, and why."""

    kind: Kind
    reason: str


Checked = Intact | Broken


def check_images(paths: Sequence[Path], root: Path) -> dict[Path, Checked]:
    """Decodes every image completely; shows a progress bar.

    Args:
        paths: the image files.
        root: the resolved folder that must contain them.

    Returns:
        The results by path.
    """
    found = in_threads(lambda path: _check(path, root), paths, "checking images")
    return dict(zip(paths, found, strict=True))


def in_threads(function: Callable[[T], R], items: Sequence[T], title: str) -> list[R]:
    """Calls a function for each image in parallel; shows a progress bar."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        try:
            return list(track(threads.map(function, items), len(items), title, "image"))
        except BaseException:  # Ctrl-C, for example, must not wait for the rest
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _check(path: Path, root: Path) -> Checked:
    try:
        encoded, stamp = read_stamped(path, root, MAX_IMAGE_BYTES)
        header = read_header(encoded)
        check_complete(encoded)
    except OutsideFolderError as error:
        return Broken(Kind.OUT_OF_FOLDER, str(error))
    except ValueError as error:
        return Broken(Kind.BROKEN_IMAGE, str(error))
    return Intact(root, stamp, header)
