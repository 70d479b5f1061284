"""Decodes every image once, in parallel, and remembers the results across killed runs."""

import contextlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TextIO

from scratchdet_jax.data.images import ImageHeader, check_complete, read_header
from scratchdet_jax.datasets.defects import Kind
from scratchdet_jax.datasets.untrusted import (
    MAX_IMAGE_BYTES,
    OutsideFolderError,
    Stamp,
    read_inside,
    stamp_inside,
)
from scratchdet_jax.progress import track

_VERSION = 2  # increase it when check_images accepts other images than before


class Intact(NamedTuple):
    """An image file that can be decoded whole."""

    stamp: Stamp
    header: ImageHeader


class Broken(NamedTuple):
    """An image file that cannot be used, and why; without a stamp, it could not be opened."""

    stamp: Stamp | None
    kind: Kind
    reason: str


Checked = Intact | Broken


class Journal:
    """Remembers checked images in a hidden file until the data set is complete.

    Every image is recorded as soon as it is checked, so a run after a killed one does not decode
    it again. An entry is valid for a path, size and modification time. Several processes may append
    at the same time.
    """

    def __init__(self, path: Path) -> None:
        """Takes the `path` of the file, which is created with the first entry."""
        self._path = path
        self._file: TextIO | None = None
        self._entries: dict[tuple[str, Stamp], Checked] = {}

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):
            for line in self._path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):  # a truncated line
                    self._load(json.loads(line))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file:
            with contextlib.suppress(OSError):
                self._file.close()

    def find(self, path: Path, stamp: Stamp) -> Checked | None:
        """Returns the recorded result for a file, or None."""
        return self._entries.get((str(path), stamp))

    def add(self, path: Path, checked: Checked) -> None:
        """Records a file, unless it is known already or could not be opened."""
        if checked.stamp is None or (str(path), checked.stamp) in self._entries:
            return
        result = {"header": None, "kind": None, "reason": "", **checked._asdict()}
        fields = {"version": _VERSION, "path": str(path), **result}
        with contextlib.suppress(OSError):  # a full disk is reported when the data is written
            if self._file is None:
                self._file = self._path.open("a", encoding="utf-8", buffering=1)
            self._file.write(json.dumps(fields) + "\n")
        self._entries[str(path), checked.stamp] = checked

    def remove(self) -> None:
        """Deletes the file, once the data set is complete."""
        self._path.unlink(missing_ok=True)

    def _load(self, fields: dict[str, Any]) -> None:
        if fields["version"] != _VERSION:
            return
        stamp = Stamp(*fields["stamp"])
        checked: Checked
        if fields["header"] is not None:
            name, (height, width), orientation = fields["header"]
            checked = Intact(stamp, ImageHeader(name, (height, width), orientation))
        else:
            checked = Broken(stamp, Kind(fields["kind"]), fields["reason"])
        self._entries[fields["path"], stamp] = checked


def check_images(paths: Sequence[Path], root: Path, journal: Journal) -> dict[Path, Checked]:
    """Decodes every image completely, unless the journal has it; shows a progress bar.

    Args:
        paths: the image files.
        root: the resolved folder that must contain them.
        journal: images checked earlier; the others are added.

    Returns:
        The results by path.
    """
    found = {}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        try:
            results = threads.map(lambda path: _check(path, root, journal), paths)
            for path, checked in zip(
                paths, track(results, len(paths), "checking images", "image"), strict=True
            ):
                journal.add(path, checked)
                found[path] = checked
        except BaseException:  # Ctrl-C, for example, must not wait for the rest
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def _check(path: Path, root: Path, journal: Journal) -> Checked:
    try:
        stamp = stamp_inside(path, root, MAX_IMAGE_BYTES)
        if known := journal.find(path, stamp):
            return known
        encoded = read_inside(path, root, MAX_IMAGE_BYTES)
    except OutsideFolderError as error:
        return Broken(None, Kind.OUT_OF_FOLDER, str(error))
    except ValueError as error:
        return Broken(None, Kind.BROKEN_IMAGE, str(error))
    try:
        header = read_header(encoded)
        check_complete(encoded)
    except ValueError as error:
        return Broken(stamp, Kind.BROKEN_IMAGE, str(error))
    return Intact(stamp, header)
