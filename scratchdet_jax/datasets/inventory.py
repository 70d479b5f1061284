"""The versions of the input files of a data set, to say later which of them changed."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scratchdet_jax.datasets.untrusted import MAX_XML_BYTES, as_text, read_inside


def describe_files(
    folder: Path,
    texts: Iterable[Path],
    images: Iterable[Path],
    others: Mapping[str, Any],
    root: Path | None = None,
) -> dict[str, str]:
    """Returns a version of every input file by its name.

    Args:
        folder: the resolved folder; names are relative to it.
        texts: annotation files, which are compared by content.
        images: image files, which are compared by size.
        others: contents that were read already, by name; they must be JSON.
        root: the resolved folder that holds the texts, if it is not `folder`.
    """
    found = {name: _digest(json.dumps(content).encode()) for name, content in others.items()}
    for path in texts:
        try:
            found[_name(path, folder)] = _digest(read_inside(path, root or folder, MAX_XML_BYTES))
        except ValueError as error:
            found[_name(path, folder)] = _digest(str(error).encode())
    for path in images:
        try:
            found[_name(path, folder)] = str(path.stat().st_size)
        except OSError:
            found[_name(path, folder)] = "missing"
    return found


def _name(path: Path, folder: Path) -> str:
    return as_text(os.path.relpath(path, folder))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
