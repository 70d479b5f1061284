"""The versions of the input files of a data set, to say later which of them changed."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scratchdet_jax.data.untrusted import MAX_XML_BYTES, as_text, read_inside


def describe_files(
    root: Path, texts: Iterable[Path], images: Iterable[Path], others: Mapping[str, Any]
) -> dict[str, str]:
    """A version of every input file by its name.

    Args:
        root: the resolved folder; names are relative to it.
        texts: annotation files, which are compared by content.
        images: image files, which are compared by size.
        others: contents that were read already, by name; they must be JSON.
    """
    found = {name: _digest(json.dumps(content).encode()) for name, content in others.items()}
    for path in texts:
        try:
            found[_name(path, root)] = _digest(read_inside(path, root, MAX_XML_BYTES))
        except ValueError as error:
            found[_name(path, root)] = _digest(str(error).encode())
    for path in images:
        try:
            found[_name(path, root)] = str(path.stat().st_size)
        except OSError:
            found[_name(path, root)] = "missing"
    return found


def _name(path: Path, root: Path) -> str:
    return as_text(os.path.relpath(path, root))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
