"""Reading untrusted files: only inside the named folder, and only up to a maximum size."""

import codecs
import contextlib
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from scratchdet_jax.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # by preference
MAX_IMAGE_BYTES = 512 << 20
MAX_XML_BYTES = 16 << 20
MAX_LIST_BYTES = 256 << 20
MAX_JSON_BYTES = 2 << 30  # COCO's largest file has 0.45 GiB, LVIS's 1.1

_FOLDERS_SEARCHED = 20  # for a missing image
_LONGEST = 300  # characters of a name or value that a message repeats
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


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
    """Decodes by the byte order mark, else as UTF-8; invalid bytes become lone surrogates.

    UTF-16 without a mark is recognised by its zero bytes, which UTF-8 text does not have.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            data = data.removeprefix(mark) if encoding == "utf-8" else data
            break
    else:
        encoding = _encoding_without_mark(data)
    return data.decode(encoding, "surrogateescape" if encoding == "utf-8" else "replace")


def _encoding_without_mark(data: bytes) -> str:
    """Guesses UTF-16 if many of every other byte, and none between, are zero (Latin letters)."""
    first, second = data[::2].count(0), data[1::2].count(0)
    if min(first, second) > 0 or 8 * max(first, second) <= len(data):
        return "utf-8"
    return "utf-16-be" if first else "utf-16-le"


def stamp_inside(path: Path, root: Path, limit: int) -> Stamp:
    """Checks a file before it is read.

    The texts of the errors are hashed into fingerprints of data sets, so they must not change.

    Args:
        path: the file, supposed to be inside `root`.
        root: the named folder, resolved.
        limit: maximum size in bytes.

    Raises:
        OutsideFolderError: the path leads outside `root`, through ".." or a link.
        ValueError: the file does not exist, is not a regular file, or is too large.
    """
    try:
        if not Path(os.path.realpath(path)).is_relative_to(root):
            raise OutsideFolderError("it is a link to something outside; copy that into the folder")
        status = path.stat()
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a file")
    if status.st_size > limit:
        raise ValueError(f"it has {status.st_size} bytes; at most {limit >> 20} MiB are read")
    return Stamp(status.st_size, status.st_mtime_ns)


def read_inside(path: Path, root: Path, limit: int) -> bytes:
    """Reads a file; arguments and errors as in `stamp_inside`."""
    stamp_inside(path, root, limit)
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None


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
        self._folders: list[str] | None = None

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
        return None, self._hint(parts) if parts else ""

    def _hint(self, parts: list[str]) -> str:
        """Says where a missing file may be: in the folder itself or in one of its subfolders."""
        if len(parts) > 1 and self._same_spelling(self.root, parts[-1]):
            return f"but {parts[-1]} is there without the leading folders"
        if self._folders is None:
            with os.scandir(self.root) as entries:
                self._folders = sorted(e.path for e in entries if e.is_dir(follow_symlinks=False))
        for folder in self._folders[:_FOLDERS_SEARCHED]:
            if self._same_spelling(Path(folder), parts[-1]):
                return f"but in its subfolder {os.path.basename(folder)}"
        return ""

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
