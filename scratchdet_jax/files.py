"""Writes a file completely or not at all; marks the files that this program wrote."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


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
    """Returns 16 hexadecimal digits that stand for a path; files made from a run carry them.

    A file is replaced only by a command for the run that it was made from.
    """
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
