"""Google Cloud Storage behind paths that begin with gs://, patient with the network.

gcsfs gives up after 30 seconds, hides some failures of the network as "does not exist", and keeps
listings that other machines have changed. `register` makes etils, Orbax and JAX, which all open
gs:// through fsspec, use the class below instead.
"""

import asyncio
import errno
import io
import json
import logging
import os
import random
import re
import threading
import time
from pathlib import Path
from typing import Any

import aiohttp
import fsspec
import google.auth.exceptions
import requests
from gcsfs.core import GCSFileSystem
from gcsfs.retry import ChecksumError, HttpError, is_retriable

from scratchdet_jax.errors import BucketError, one_line
from scratchdet_jax.progress import say

PATIENCE = 300.0  # seconds for which a request is repeated
_LONGEST_PAUSE = 15.0  # seconds between two attempts
_STALLED = 120.0  # seconds without a byte of the answer, after which a request is repeated
_SILENCE = 10.0  # seconds after which waiting is reported
_FAILURES = (
    HttpError,
    ChecksumError,
    requests.exceptions.RequestException,
    google.auth.exceptions.GoogleAuthError,
    aiohttp.ClientError,
    asyncio.TimeoutError,
)


class Bucket(GCSFileSystem):
    """Google Cloud Storage; a request is repeated for PATIENCE seconds.

    What then has failed is a BucketError. A write or a deletion whose answer was lost is repeated.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Opens it as gcsfs does, without a cache of listings, and with limits of time."""
        stalled = aiohttp.ClientTimeout(sock_connect=30, sock_read=_STALLED)
        defaults = {"requests_timeout": stalled, "use_listings_cache": False}
        super().__init__(*args, **defaults | kwargs)

    async def _request(self, *args: Any, **kwargs: Any) -> Any:
        attempt = super()._request.__wrapped__  # without the 6 attempts of gcsfs
        began, pause = time.monotonic(), 0.5
        waiting = tried = False
        while True:
            try:
                answer = await attempt(self, *args, **kwargs)
                if waiting:
                    _waiting.ended("the bucket answers again")
                return answer
            except _FAILURES as error:
                waited = time.monotonic() - began
                if not _passes(error) or waited > PATIENCE:
                    if waiting:
                        _waiting.ended()
                    raise _as_os_error(error, args) from error
                if waited > _SILENCE and not waiting:
                    waiting = True
                    _waiting.began(one_line(error))
            except (ValueError, OSError) as error:
                if args[0] == "DELETE" and tried and isinstance(error, FileNotFoundError):
                    return 204, {}, None, b""  # an earlier attempt, whose answer was lost
                raise _as_os_error(error, args) from error
            tried = True
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _open(self, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        if mode == "wb":
            return _Upload(self, path)
        return super()._open(path, mode, *args, **kwargs)

    async def _exists(self, path: str, **kwargs: Any) -> bool:
        try:
            await self._info(path, **kwargs)
        except FileNotFoundError:
            return False
        return True

    async def _isdir(self, path: str) -> bool:
        try:
            return (await self._info(path))["type"] == "directory"
        except FileNotFoundError:
            return False

    async def _mkdir(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Does nothing: folders come with their files, and a bucket is its owner's to make."""

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Does nothing, as `_mkdir`."""


class _Upload(io.BytesIO):
    """The content of an object, sent as a whole when it is closed.

    gcsfs sends parts. A part whose answer was lost cannot be sent again.
    """

    def __init__(self, system: Bucket, path: str) -> None:
        super().__init__()
        self._system, self._path = system, path

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            self._system.pipe_file(self._path, content)


class _Waiting:
    """Says once that requests are being repeated, however many threads repeat them."""

    def __init__(self) -> None:
        self._lock, self._reported = threading.Lock(), False

    def began(self, reason: str) -> None:
        with self._lock:
            if not self._reported:
                say(f"warning: the bucket does not answer ({reason}): trying again", error=True)
            self._reported = True

    def ended(self, report: str = "") -> None:
        with self._lock:
            if self._reported and report:
                say(report, error=True)
            self._reported = False


_waiting = _Waiting()
for _name in ("gcsfs", "google.auth"):  # what they report is reported here, in a sentence
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def _passes(error: Exception) -> bool:
    """Returns whether a failure may pass by itself."""
    if isinstance(error, google.auth.exceptions.GoogleAuthError):
        return bool(getattr(error, "retryable", False))
    return isinstance(error, asyncio.TimeoutError) or is_retriable(error)


def _as_os_error(error: Exception, request: tuple[Any, ...]) -> OSError:
    """Returns what the caller of a request gets: `request` is (method, path, bucket, …)."""
    if isinstance(error, FileNotFoundError | FileExistsError):
        return error
    number = errno.EIO
    if isinstance(error, google.auth.exceptions.GoogleAuthError):
        number, text = errno.EACCES, f"no credentials: {one_line(error, 120)}"
    elif str(getattr(error, "code", "")) in ("401", "403") or str(error).startswith("Forbidden"):
        number, text = errno.EACCES, f"permission denied: {one_line(error, 120)}"
    elif _passes(error):
        text = f"no answer for {PATIENCE:g} s: {one_line(error, 120)}"
    else:
        text = one_line(error)
    found = re.search(r"/b/([^/?]+)/", str(request[1]))
    name = request[2] if len(request) > 2 else found[1] if found else ""
    return BucketError(number, text, f"gs://{name}")


def read_versioned(path: Path) -> tuple[bytes, int] | None:
    """Reads an object and its generation, which changes whenever it is written; None without it."""
    system = bucket()
    try:
        headers, content = system.call("GET", system.url(str(path)))
    except FileNotFoundError:
        return None
    return content, int(headers["X-Goog-Generation"])


def write_if(path: Path, content: bytes, generation: int) -> int:
    """Writes an object if it still has a generation (0: does not exist); returns its new one.

    Raises:
        FileExistsError: it has another one.
    """
    system, boundary = bucket(), "scratchdet"
    name, _, key = str(path).removeprefix("gs://").partition("/")
    # The service accepts the condition with the content alone, too; its emulators do not.
    about = f"--{boundary}\nContent-Type: application/json\n\n{json.dumps({'name': key})}\n"
    data = f"--{boundary}\nContent-Type: application/octet-stream\n\n".encode() + content
    answer = system.call(
        "POST",
        f"{system._location}/upload/storage/v1/b/{name}/o",
        uploadType="multipart",
        ifGenerationMatch=generation,
        headers={"Content-Type": f'multipart/related; boundary="{boundary}"'},
        data=about.encode() + data + f"\n--{boundary}--".encode(),
        json_out=True,
    )
    return int(answer["generation"])


def checksums(folder: Path) -> dict[str, tuple[int, str]]:
    """Returns size and CRC-32C (base64, as the service keeps it) of every object in a folder.

    The names are those inside the folder; nothing is read but the listing.
    """
    prefix = str(folder).removeprefix("gs://") + "/"
    found = bucket().find(prefix, detail=True)
    return {
        name.removeprefix(prefix): (int(about["size"]), about["crc32c"])
        for name, about in found.items()
    }


def move(source: Path, target: Path) -> None:
    """Moves a folder: copies its objects inside the service, then deletes them."""
    system = bucket()
    for name in checksums(source):
        system.cp_file(f"{source}/{name}", f"{target}/{name}")
    system.rm(str(source), recursive=True)


def register() -> None:
    """Makes every library open gs:// by `Bucket`; etils as if TensorFlow were not installed."""
    os.environ.setdefault("EPATH_USE_TF", "false")
    for name in ("gs", "gcs"):
        fsspec.register_implementation(name, Bucket, clobber=True)


def bucket() -> Bucket:
    """Returns the file system, for what path objects lack."""
    register()
    return fsspec.filesystem("gs")
