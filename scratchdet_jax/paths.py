"""Turns the paths that users give, with a flag or in a config, into path objects.

A path names a file or folder of this machine, or one in a bucket: gs:// (Google Cloud Storage)
everywhere, s3:// and hf:// for what is only read or written as a whole.
"""

import importlib
import os
import re
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from scratchdet_jax.errors import UserError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # one letter is a drive of Windows
_PACKAGES = {  # what opens a scheme, and how to install it
    "gs": ("gcsfs", "pip install -r requirements-tpu.txt"),
    "s3": ("s3fs", "pip install -r requirements-s3.txt"),
    "hf": ("huggingface_hub", "pip install huggingface_hub"),
}


def user_path(text: str | os.PathLike[str]) -> Path:
    """Returns a path whose files are read and written as a whole: local, gs://, s3:// or hf://.

    A leading ~ is a home folder; variables are left alone. The path of a bucket is etils' path
    object, which has the methods of Path for reading, writing and listing.

    Raises:
        UserError: the URL is of another kind, or the package that opens it is missing.
    """
    return _path(text, _PACKAGES, "a path here is local, or begins with gs://, s3:// or hf://")


def run_path(text: str | os.PathLike[str]) -> Path:
    """Returns the path of a run, whose checkpoints Orbax writes and reads: local or gs://.

    Raises:
        UserError: the URL is of another kind, or the package that opens it is missing.
    """
    return _path(
        text,
        ("gs",),
        "the checkpoints of a run are written to a folder or to gs:// only (Orbax): name one of "
        "these, and copy the run afterwards",
    )


def local_path(text: str | os.PathLike[str]) -> Path:
    """Returns the path of something that is only read from this machine.

    Raises:
        UserError: it is a URL.
    """
    return _path(text, (), "this is read from a folder of this machine: copy the files first")


def in_bucket(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path object is one of a bucket."""
    return "://" in os.fspath(path)  # a local path has no double slash


def buckets(module: str) -> Any:
    """Imports a module of scratchdet_jax.buckets, by name: the rest of the core reads without."""
    return importlib.import_module(f"scratchdet_jax.buckets.{module}")


def _path(text: str | os.PathLike[str], allowed: Collection[str], advice: str) -> Path:
    text = os.fspath(text)
    url = _URL.match(text)
    if not url:
        return Path(os.path.expanduser(text))
    scheme = url[1]
    if scheme not in allowed or not re.match(r"\w+://[^/]", text):
        raise UserError(f"{text} cannot be used: {advice}")
    package, command = _PACKAGES[scheme]
    if find_spec(package) is None:
        raise UserError(f"{text} needs the package {package}: {command}")
    if scheme != "hf":
        buckets({"gs": "gcs"}.get(scheme, scheme)).register()
    from etils import epath

    return cast(Path, epath.Path(text))
