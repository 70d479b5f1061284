"""Prepared data sets in a bucket: copies the files that a split needs to a local cache.

Records are read at random, so they have to be on a local disk. The cache has the folders of the
bucket: gs://bucket/data is CACHE/gs/bucket/data. A copy is made once, is verified, and is used
until the object in the bucket changes.
"""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from scratchdet_jax.data.tfds_dataset import newest_version
from scratchdet_jax.errors import UserError, one_line, plural
from scratchdet_jax.files import write_text_atomically
from scratchdet_jax.paths import local_path
from scratchdet_jax.progress import Progress

_THREADS = 8
_CHUNK = 1 << 24  # bytes of a request
_INDEX = ".versions.json"  # of the copied files
_SHARD = ".array_record"
_VERSIONS = ("crc32c", "ETag", "blob_id", "mtime", "LastModified")  # by store; the first is used


class _Object(NamedTuple):
    """A file in the bucket.

    Attributes:
        path: as fsspec names it.
        size: in bytes.
        version: changes with its content; CRC-32C in base64 where the store has that.
    """

    path: str
    size: int
    version: str


def cached(name: str, split: str, data_dir: str, cache: str) -> str:
    """Copies what a split of a data set needs from a bucket to the cache.

    Args:
        name: NAME[/CONFIG].
        split: in TFDS's split language; nothing is copied for an unknown one.
        data_dir: the folder of the data sets, in a bucket.
        cache: the local folder.

    Returns:
        The data_dir in the cache, to open instead.

    Raises:
        UserError: the data set does not exist, there is no room, or it cannot be copied.
    """
    scheme, _, rest = data_dir.partition("://")
    local = local_path(cache) / scheme / rest
    remote = newest_version(name, data_dir)
    folder = local / name / remote.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            objects = _listed(str(remote))
            copy = _Copy(folder, objects, f"{name}:{split} from {data_dir}", cache)
            copy.fetch([file for file in objects if _SHARD not in file])
            copy.fetch(_shards(folder, split, objects))
    except OSError as error:
        raise UserError(
            f"{name} in {data_dir} cannot be copied to config.data.cache {cache} "
            f"({error.strerror or one_line(error)}): run the same command to continue"
        ) from None
    return str(local)


def _listed(remote: str) -> dict[str, _Object]:
    import fsspec  # slow to import

    system, path = fsspec.url_to_fs(remote)
    objects = {}
    for about in system.ls(path, detail=True):
        if about["type"] == "file":
            version = next((str(about[key]) for key in _VERSIONS if about.get(key)), "")
            name = about["name"].rpartition("/")[2]
            objects[name] = _Object(f"{remote}/{name}", int(about["size"]), version)
    return objects


def _shards(folder: Path, split: str, objects: Mapping[str, _Object]) -> list[str]:
    try:
        needed = tfds.builder_from_directory(folder).info.splits[split].file_instructions
    except Exception:  # opening the data set says what is wrong with it, or with the split
        return []
    names = {os.path.basename(instruction.filename) for instruction in needed}
    return sorted(names & objects.keys())


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one process of this machine copy; the others wait and find the files."""
    with (folder / ".lock").open("w") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Copy:
    """Copies objects to a folder; what it has copied before is used."""

    def __init__(
        self, folder: Path, objects: Mapping[str, _Object], title: str, cache: str
    ) -> None:
        self._folder, self._objects, self._title, self._cache = folder, objects, title, cache
        self._lock = threading.Lock()
        try:
            self._versions = dict(json.loads((folder / _INDEX).read_bytes()))
        except (OSError, ValueError, TypeError):
            self._versions = {}

    def fetch(self, names: Sequence[str]) -> None:
        """Copies the objects of these names that are missing or have changed."""
        missing = [name for name in names if not self._is_there(name)]
        if not missing:
            return
        left = {name: self._objects[name].size - self._begun(name) for name in missing}
        total, free = sum(left.values()), shutil.disk_usage(self._folder).free
        if total > free:
            raise UserError(
                f"{self._title} needs {_size(total)}, but config.data.cache {self._cache} has "
                f"{_size(free)} free: make room, or name a folder with more"
            )
        if total > _CHUNK:
            print(
                f"copying {self._title} to {self._folder}: {plural(len(missing), 'file')}, "
                f"{_size(total)}",
                flush=True,
            )
        with (
            Progress(total // 10**6, "copying", "MB") as progress,
            ThreadPoolExecutor(_THREADS) as threads,
        ):
            copying = [threads.submit(self._copy, name, progress) for name in missing]
            try:
                for one in copying:
                    one.result()
            finally:
                threads.shutdown(wait=True, cancel_futures=True)

    def _is_there(self, name: str) -> bool:
        path, wanted = self._folder / name, self._objects[name]
        same = self._versions.get(name) == wanted.version
        return same and path.is_file() and path.stat().st_size == wanted.size

    def _part(self, name: str) -> Path:
        """Returns the file of an incomplete copy, whose name holds the version."""
        version = self._objects[name].version.encode().hex()[:32]
        return self._folder / f".{name}.{version}.part"

    def _begun(self, name: str) -> int:
        part = self._part(name)
        return part.stat().st_size if part.exists() else 0

    def _copy(self, name: str, progress: Progress) -> None:
        import fsspec

        wanted, part = self._objects[name], self._part(name)
        system, path = fsspec.url_to_fs(wanted.path)
        if self._begun(name) > wanted.size:
            part.unlink()
        with part.open("ab") as file:
            while (start := file.tell()) < wanted.size:
                end = min(start + _CHUNK, wanted.size)
                file.write(_read(system, path, start, end))
                with self._lock:
                    progress.update(units=end // 10**6 - start // 10**6)
            file.flush()
            os.fsync(file.fileno())
        if wanted.path.startswith("gs://") and _crc32c(part) != wanted.version:
            part.unlink()
            raise OSError(f"the copy of {wanted.path} differs from it (CRC-32C)")
        part.replace(self._folder / name)
        with self._lock:
            self._versions[name] = wanted.version
            write_text_atomically(self._folder / _INDEX, json.dumps(self._versions))


def _read(system: Any, path: str, start: int, end: int) -> bytes:
    content: bytes = system.cat_file(path, start=start, end=end)
    if len(content) != end - start:
        raise OSError(f"{path} has changed")
    return content


def _crc32c(path: Path) -> str:
    """Returns the CRC-32C of a file as Google Cloud Storage writes it: base64, big-endian."""
    import google_crc32c  # comes with gcsfs

    value = google_crc32c.Checksum()
    with path.open("rb") as file:
        for _ in value.consume(file, _CHUNK):
            pass
    return base64.b64encode(value.digest()).decode()


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
