"""Writes files completely or not at all, and decides which ones may be replaced."""

import contextlib
import errno
import hashlib
import io
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from scratchdet_jax.errors import UserError, one_line
from scratchdet_jax.paths import in_bucket, user_path

_HEAD = 400  # bytes in which a mark must be


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replaces a file in one step: readers see the old content or the new, even after a crash.

    Args:
        path: the file; its folder must exist. The new content is written beside it first.
        write: writes the content to a file opened for binary writing.
    """
    if in_bucket(path):
        content = io.BytesIO()
        write(content)
        write_bytes(path, content.getvalue())
        return
    if path.exists() and not path.is_file():  # such as /dev/stdout
        with path.open("wb") as file:
            write(file)
        return
    part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}")  # names have a limit
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Writes an object of a bucket, which appears with its complete content.

    etils would send it in parts, and a repeated part is an error.
    """
    import fsspec  # slow to import

    system, name = fsspec.url_to_fs(str(path))
    try:
        system.pipe_file(name, content)
    except OSError:
        raise
    except Exception as error:  # s3fs passes on the exceptions of botocore
        raise OSError(errno.EIO, one_line(error)) from error


def write_text_atomically(path: Path, text: str) -> None:
    """Writes UTF-8 text by `write_atomically`."""
    write_atomically(path, lambda file: file.write(text.encode()))


def writable_folder(path: Path, flag: str) -> Path:
    """Creates a folder if it is missing; a UserError names `flag` if it cannot be written to."""
    try:
        if in_bucket(path):  # it need not exist, but must take files, and let them be deleted
            probe = path / f".writable-{os.getpid()}-{secrets.token_hex(4)}"
            write_bytes(probe, b"")
            probe.unlink()
            return path
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        missing = in_bucket(path) and isinstance(error, FileNotFoundError)
        reason = "there is no such bucket" if missing else error.strerror
        raise UserError(
            f"{flag} {path} cannot be written ({reason}): choose another folder"
        ) from None
    return path


def mark_of(path: Path) -> str:
    """Returns 16 hexadecimal digits that stand for a path: the mark of files made from a run."""
    return hashlib.sha256(str(absolute(path)).encode()).hexdigest()[:16]


def size(path: Path) -> int:
    """Returns the size of a file in bytes."""
    status: Any = path.stat()
    return status.length if in_bucket(path) else status.st_size  # etils' name


def absolute(path: Path) -> Path:
    """Returns the path without links and relative parts; that of a bucket as it is."""
    return path if in_bucket(path) else path.resolve()


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
    if overwrite or not (path.exists() if in_bucket(path) else os.path.lexists(path)):
        return
    if mark and not (not in_bucket(path) and path.is_symlink()) and is_marked(path, mark):
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
        write_text_atomically(path, json.dumps(record, indent=2) + "\n")


@contextlib.contextmanager
def writing(named: str, instead: str = "choose another file") -> Iterator[None]:
    """Turns an OSError inside into a UserError about the file `named`, and what to do `instead`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno or 0)
        raise UserError(f"{named} cannot be written ({reason}): {instead}") from None
