"""Files that a tool replaces only if it wrote them itself: a mark near their beginning says so."""

from pathlib import Path

from scratchdet_jax.errors import UserError
from scratchdet_jax.files import check_replaceable, write_text_atomically


def check_output(path: Path, mark: str, flag: str, overwrite: bool = False) -> None:
    """Checks `files.check_replaceable` before there is anything to write, and makes the folder.

    Raises:
        UserError: something else is there, or the folder cannot be made.
    """
    check_replaceable(f"{flag} {path}", path, mark, overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, flag, error) from None


def write_output(path: Path, text: str, mark: str, flag: str, overwrite: bool = False) -> None:
    """Writes a text that holds the mark; the file is complete or as it was before.

    Raises:
        UserError: the file cannot be written, or is not this command's own.
    """
    check_output(path, mark, flag, overwrite)
    try:
        # Names of files may hold what is no Unicode.
        write_text_atomically(path, text.encode(errors="replace").decode())
    except OSError as error:
        raise _unwritable(path, flag, error) from None


def _unwritable(path: Path, flag: str, error: OSError) -> UserError:
    return UserError(f"{flag} {path} cannot be written ({error.strerror}): choose another file")
