"""Checksums of checkpoint files: detect a damaged checkpoint before it is used."""

import json
import os
import zlib
from pathlib import Path

from scratchdet_jax.files import write_text_atomically

CHECKSUMS = "checksums.json"
STAMPED = "_CHECKPOINT_METADATA"  # written last: Orbax adds the time of completion
_CHUNK = 1 << 22  # bytes read at a time


def write_checksums(directory: Path) -> None:
    """Adds the sizes and CRC-32 of all files to a complete checkpoint."""
    names = sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())
    sums = {
        name: (os.stat(directory / name).st_size, _crc(directory / name))
        for name in names
        if name not in (CHECKSUMS, STAMPED)
    }
    write_text_atomically(directory / CHECKSUMS, json.dumps(sums))


def damage(directory: Path) -> str | None:
    """Says what is wrong with the files of a checkpoint, in a few words; None if intact."""
    try:
        text = (directory / CHECKSUMS).read_bytes()
        sums = {str(name): (int(size), int(crc)) for name, (size, crc) in json.loads(text).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return f"{CHECKSUMS} cannot be read"
    try:
        json.loads((directory / STAMPED).read_bytes())
    except (OSError, ValueError):
        return f"{STAMPED} cannot be read"
    for name, (size, crc) in sums.items():
        file = directory / name
        try:
            found = os.stat(file).st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
            if _crc(file) != crc:
                return f"the content of {name} has changed"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
    return None


def _crc(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value
