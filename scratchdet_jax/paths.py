"""Turns the paths that users give, with a flag or in a config, into path objects."""

import os
import re
from pathlib import Path

from scratchdet_jax.errors import UserError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one letter is a drive of Windows


def user_path(text: str | os.PathLike[str]) -> Path:
    """Returns the path that a user named; a leading ~ is a home folder, variables are left alone.

    Raises:
        UserError: it is a URL, such as that of a bucket.
    """
    text = os.fspath(text)
    if _URL.match(text):
        raise UserError(
            f"{text} is not a path of this machine: mount the bucket (gcsfuse, rclone mount), or "
            "copy the files, and name the folder"
        )
    return Path(os.path.expanduser(text))
