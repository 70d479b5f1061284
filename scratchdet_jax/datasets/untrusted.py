"""Reading untrusted files: only inside the named folder, and only up to a maximum size."""

import contextlib
import json
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import yaml

from scratchdet_jax.errors import UserError, one_line

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # by preference
MAX_IMAGE_BYTES = 512 << 20
MAX_XML_BYTES = 16 << 20
MAX_LIST_BYTES = 256 << 20
MAX_JSON_BYTES = 2 << 30  # COCO's largest file has 0.45 GiB, LVIS's 1.1

_LONGEST = 300  # characters of a name or value that a message repeats


class OutsideFolderError(ValueError):
    """A path leads outside the named folder."""


class Stamp(NamedTuple):
    """Identifies a version of a file: its size in bytes and modification time in ns."""

    size: int
    mtime_ns: int


def printable(text: str) -> str:
    """Puts the text on one line: escapes unprintable characters, cuts a long text."""
    cut = text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def as_text(name: str) -> str:
    """Decodes a file name to Unicode text: bytes that are not UTF-8 as Latin-1.

    Python represents such bytes as lone surrogates, which a text file cannot hold.
    """
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate from a JSON escape
        return name.encode("utf-8", "backslashreplace").decode()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def as_key(name: str) -> str:
    """Returns one key for all encodings of a name: é as one or two characters, UTF-8 or Latin-1."""
    return unicodedata.normalize("NFC", as_text(name))


def decode_text(data: bytes) -> str:
    """Decodes UTF-8, UTF-16 or UTF-32; invalid bytes of UTF-8 become lone surrogates."""
    encoding = json.detect_encoding(data)
    return data.decode(encoding, "surrogateescape" if "utf-8" in encoding else "replace")


def read_stamped(path: Path, root: Path, limit: int) -> tuple[bytes, Stamp]:
    """Reads a file and its version.

    The texts of the errors are hashed into fingerprints of data sets, so they must not change.

    Args:
        path: the file, supposed to be inside `root`.
        root: the named folder, resolved.
        limit: maximum size in bytes.

    Raises:
        OutsideFolderError: the path leads outside `root`, through ".." or a link.
        ValueError: the file does not exist, is not a regular file, is too large or unreadable.
    """
    try:
        if not Path(os.path.realpath(path)).is_relative_to(root):
            raise OutsideFolderError("it is a link to something outside; copy that into the folder")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a file")
        if status.st_size > limit:
            raise ValueError(f"it has {status.st_size} bytes; at most {limit >> 20} MiB are read")
        with path.open("rb") as file:
            return file.read(limit), Stamp(status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None


def read_inside(path: Path, root: Path, limit: int) -> bytes:
    """Reads a file; arguments and errors as in `read_stamped`."""
    return read_stamped(path, root, limit)[0]


def read_named(path: Path, limit: int, parse: Callable[[str], Any], what: str) -> tuple[Any, bytes]:
    """Reads a file that the user named, following links; returns its parsed text and its bytes.

    Raises:
        UserError: it does not exist, cannot be read or cannot be parsed as `what`.
    """
    try:
        file = path.resolve(strict=True)
        data = read_inside(file, file.parent, limit)
        return parse(decode_text(data)), data
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, ValueError, RuntimeError, yaml.YAMLError) as error:  # Runtime: links, nesting
        reason = printable(one_line(error))
        raise UserError(f"{path} cannot be read as {what}: {reason}") from None


def content_for_hash(path: Path, root: Path, limit: int) -> bytes:
    """Returns what stands for a file in a fingerprint: its bytes, or why it cannot be read."""
    try:
        return read_inside(path, root, limit)
    except ValueError as error:
        return str(error).encode()


def file_size(path: Path) -> int:
    """Returns the size in bytes; −1 if there is no such file."""
    return path.stat().st_size if path.exists() else -1


def read_list(path: Path, root: Path) -> list[str]:
    """Reads the lines of a text file in `root`, without those that are blank.

    Raises:
        UserError: it cannot be read.
    """
    try:
        text = decode_text(read_inside(path, root, MAX_LIST_BYTES))
    except ValueError as error:
        raise UserError(f"{printable(str(path))} cannot be read: {error}") from None
    lines = text.split("\n" if "\n" in text else "\r")
    return [line.strip() for line in lines if line.strip()]


@contextlib.contextmanager
def as_user_errors(what: str) -> Iterator[None]:
    """Turns an OSError into a UserError that names the file, or `what` if no file is known."""
    try:
        yield
    except OSError as error:
        where = printable(str(error.filename)) if error.filename else what
        raise UserError(f"{where}: {error.strerror or error}") from None


class ImageFolder:
    """Finds listed image files in a folder, and nothing outside it."""

    def __init__(self, root: Path) -> None:
        """Takes `root`, the resolved folder."""
        self.root = root
        self._spellings: dict[Path, dict[str, list[str]]] = {}

    def find(self, name: str) -> tuple[Path | None, str]:
        """Looks up a name.

        Args:
            name: path relative to the folder. If there is no such file, other spellings are tried:
                upper or lower case of the suffix, composed or decomposed accents, and backslashes
                as separators.

        Returns:
            The path, and "" or the name under which the file was found; or None and a hint.

        Raises:
            OutsideFolderError: the name leads outside the folder.
        """
        windows = PureWindowsPath(name)
        if name.startswith("/") or windows.root or ".." in windows.parts:
            raise OutsideFolderError("it is not a path inside the folder")
        with contextlib.suppress(OSError, ValueError):  # no such file, or an impossible name
            path = self.root / name
            path.lstat()
            return path, ""
        parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
        parent = self.root.joinpath(*parts[:-1])
        found = self._same_spelling(parent, parts[-1]) if parts else []
        if len(found) == 1:
            path = parent / found[0]
            return path, path.relative_to(self.root).as_posix()
        if len(parts) > 1 and self._same_spelling(self.root, parts[-1]):
            return None, f", but {parts[-1]} is there without the leading folders"
        return None, ""

    def _same_spelling(self, parent: Path, name: str) -> list[str]:
        if parent not in self._spellings:
            table: dict[str, list[str]] = {}
            with contextlib.suppress(OSError, ValueError):  # no such folder, or an impossible name
                if Path(os.path.realpath(parent)).is_relative_to(self.root):
                    for other in sorted(os.listdir(parent)):
                        table.setdefault(_spelling(other), []).append(other)
            self._spellings[parent] = table
        return self._spellings[parent].get(_spelling(name), [])


def _spelling(name: str) -> str:
    stem, suffix = os.path.splitext(as_key(name))
    return stem + suffix.lower()
