"""Files that a tool replaces only if it wrote them itself: a mark near their beginning says so."""

from pathlib import Path

from scratchdet_jax.errors import UserError
from scratchdet_jax.files import write_text_atomically

_HEAD = 400  # bytes in which the mark must be


def check_output(path: Path, mark: str, flag: str) -> None:
    """Makes sure that a file may be written, before there is anything to write.

    Raises:
        UserError: something else is there, or the folder cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        exists = path.is_symlink() or path.exists()
        own = path.is_file() and not path.is_symlink()
        if own:
            with path.open("rb") as file:
                own = mark.encode() in file.read(_HEAD)
    except OSError as error:
        raise _unwritable(path, flag, error) from None
    if exists and not own:
        raise UserError(
            f"{flag} {path} exists and was not written by this command: choose another file, or "
            "remove it"
        )


def write_output(path: Path, text: str, mark: str, flag: str) -> None:
    """Writes a text that holds the mark; the file is complete or as it was before.

    Raises:
        UserError: the file cannot be written, or is not this command's own.
    """
    check_output(path, mark, flag)
    try:
        # Names of files may hold what is no Unicode.
        write_text_atomically(path, text.encode(errors="replace").decode())
    except OSError as error:
        raise _unwritable(path, flag, error) from None


def _unwritable(path: Path, flag: str, error: OSError) -> UserError:
    return UserError(f"{flag} {path} cannot be written ({error.strerror}): choose another file")
