"""Writing a file so that it is there completely or not at all, and marks of what we wrote."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from scratchdet_jax.errors import UserError


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
    """`write_atomically` for UTF-8 text."""
    write_atomically(path, lambda file: file.write(text.encode()))


def mark_of(path: Path) -> str:
    """16 hexadecimal digits that stand for a path: files made from a run bear them.

    A file is replaced only by a command for the run that it was made from.
    """
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]


def write_json(path: str | Path, record: Any, flag: str) -> None:
    """Writes JSON to a file that the user named with `flag`; creates its folder.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{flag} {path} cannot be written ({error.strerror}): choose another file"
        ) from None
