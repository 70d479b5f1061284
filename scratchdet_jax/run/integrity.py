"""Checksums of a checkpoint's files: a damaged one is known before anything is built upon it."""

import json
import os
import zlib
from pathlib import Path

CHECKSUMS = "checksums.json"
STAMPED = "_CHECKPOINT_METADATA"  # Orbax writes the time of completion into it last of all
_CHUNK = 1 << 22  # bytes read at a time


def write_checksums(directory: Path) -> None:
    """Writes sizes and CRC-32 of all files of a complete checkpoint into it."""
    names = sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())
    sums = {
        name: (os.stat(directory / name).st_size, _crc(directory / name))
        for name in names
        if name not in (CHECKSUMS, STAMPED)
    }
    write_json(directory / CHECKSUMS, sums)


def damage(directory: Path) -> str | None:
    """What is wrong with a checkpoint's files, in a few words; None if nothing is.

    Raises:
        FileNotFoundError: it has no checksums (it was written before there were any).
    """
    text = (directory / CHECKSUMS).read_bytes()
    try:
        sums = {str(name): (int(size), int(crc)) for name, (size, crc) in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
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


def write_json(path: Path, value: object) -> None:
    """Writes a file so that it is there whole or not at all, whatever happens in between."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _crc(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value
