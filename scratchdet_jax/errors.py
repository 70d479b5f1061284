"""The one exception that means: the user can mend this."""

import tempfile
from pathlib import Path


class UserError(Exception):
    """Something in the user's files, flags or environment is wrong.

    The message is one clear sentence: what is wrong, where, and what to do. Entry points print it
    without a traceback and exit with status 1.
    """


def writable_folder(path: Path, flag: str) -> Path:
    """Makes a folder if it is missing; a UserError names `flag` if nothing can be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(
            f"{flag} {path} cannot be written ({error.strerror}): choose another folder"
        ) from None
    return path


PREEMPTED = 75  # exit status: EX_TEMPFAIL, "try again": the same command resumes


class Preempted(SystemExit):
    """The run was asked to end by SIGTERM and what it did is saved; exit status 75."""

    def __init__(self) -> None:
        super().__init__(PREEMPTED)
