"""Writes files completely or not at all, and decides which ones may be replaced."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from scratchdet_jax.errors import UserError
from scratchdet_jax.paths import user_path

_HEAD = 400  # bytes in which a mark must be


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replaces a file in one step: readers see the old content or the new, even after a crash.

    Args:
        path: the file; its folder must exist. The new content is written beside it first.
        write: writes the content to a file opened for binary writing.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text_atomically(path: Path, text: str) -> None:
    """Writes UTF-8 text by `write_atomically`."""
    write_atomically(path, lambda file: file.write(text.encode()))


def mark_of(path: Path) -> str:
    """Returns 16 hexadecimal digits that stand for a path: the mark of files made from a run."""
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]


def is_marked(path: Path, mark: str) -> bool:
    """Returns whether a file has a mark near its beginning; later on, anybody may quote it."""
    try:
        with path.open("rb") as file:
            return mark.encode() in file.read(_HEAD)
    except OSError:
        return False


def check_replaceable(named: str, path: Path, mark: str, overwrite: bool) -> None:
    """Checks that a file may be written: it is new, has our own mark, or is to be overwritten.

    A link is never our own.

    Args:
        named: the file in the message, such as "--output FILE".
        path: the file.
        mark: the mark that the new file gets near its beginning; "" if it cannot have one.
        overwrite: replace any file, as --overwrite asks.

    Raises:
        UserError: another file is there.
    """
    if overwrite or not os.path.lexists(path):
        return
    if mark and not path.is_symlink() and is_marked(path, mark):
        return
    reason = " and was not written by this command" if mark else ""
    raise UserError(f"{named} exists{reason}: choose another place, remove it, or add --overwrite")


def write_json(path: str | Path, record: Any, flag: str) -> None:
    """Writes JSON to a file that the user named with `flag`; creates its folder.

    Raises:
        UserError: the file cannot be written.
    """
    path = user_path(path)
    with writing(f"{flag} {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def writing(named: str, instead: str = "choose another file") -> Iterator[None]:
    """Turns an OSError inside into a UserError about the file `named`, and what to do `instead`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno or 0)
        raise UserError(f"{named} cannot be written ({reason}): {instead}") from None
