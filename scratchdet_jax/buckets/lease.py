"""The lock of a workdir in a bucket: an object that its run renews while it lives.

A bucket has no locks that end with their process. Every write is conditional on the object's
generation: of two runs that want the lock, one gets it. Whether the other lives is judged by
whether the generation changes, not by the clocks of two machines.
"""

import contextlib
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from scratchdet_jax.buckets.gcs import read_versioned, write_if
from scratchdet_jax.errors import UserError
from scratchdet_jax.progress import say

RENEWED_EVERY = 15.0  # seconds
EXPIRES = 60.0  # seconds without a renewal, after which another run takes the lock


@contextlib.contextmanager
def leased(path: Path, who: str) -> Iterator[None]:
    """Holds the lock `path`, an object in a bucket; `who` tells users which run that is.

    Waits up to EXPIRES seconds for a run that may have been killed.

    Raises:
        UserError: a run that lives holds the lock; names it.
    """
    lease = _Lease(path, who)
    lease.acquire()
    try:
        yield
    finally:
        lease.release()


class _Lease:
    def __init__(self, path: Path, who: str, end: Callable[[int], None] = os._exit) -> None:
        self._path, self._who, self._end = path, who, end
        self._token = secrets.token_hex(8)
        self._generation = 0
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def acquire(self) -> None:
        """Takes the lock and begins to renew it."""
        seen, since = 0, 0.0
        while not self._take(seen if seen and time.monotonic() - since > EXPIRES else 0):
            holder, generation = self._read()
            if generation and seen and generation != seen:
                raise UserError(
                    f"{self._path.parent} is in use by another run ({holder}): wait until it ends, "
                    "stop it, or choose a new --workdir"
                )
            if generation and not seen:
                print(
                    f"{self._path.parent} is locked by another run ({holder}): waiting up to "
                    f"{EXPIRES + RENEWED_EVERY:.0f} s to see whether it still runs",
                    file=sys.stderr,
                )
                since = time.monotonic()
            seen = generation
            time.sleep(min(RENEWED_EVERY / 5, 2.0))
        self._thread.start()

    def release(self) -> None:
        """Gives the lock back."""
        self._released.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            found = self._read()
            if found[1] == self._generation:
                self._path.unlink()

    def _take(self, generation: int) -> bool:
        """Writes the lock over that generation (0: none); returns whether it was still there."""
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        content = json.dumps({"run": self._who, "renewed": since, "token": self._token})
        try:
            self._generation = write_if(self._path, content.encode(), generation)
        except FileExistsError:
            return self._is_mine()
        return True

    def _is_mine(self) -> bool:
        """Returns whether a write was made although its answer was lost."""
        content, generation = self._content()
        if content.get("token") != self._token:
            return False
        self._generation = generation
        return True

    def _read(self) -> tuple[str, int]:
        """Returns who holds the lock and its generation; 0 if nobody does."""
        content, generation = self._content()
        return f"{content.get('run', 'unknown')}, renewed {content.get('renewed')}", generation

    def _content(self) -> tuple[dict[str, str], int]:
        found = read_versioned(self._path)
        try:
            return (dict(json.loads(found[0])), found[1]) if found else ({}, 0)
        except (ValueError, TypeError):
            return {}, found[1] if found else 0

    def _renew(self) -> None:
        while not self._released.wait(RENEWED_EVERY):
            try:
                if self._take(self._generation):
                    continue
                holder, generation = self._read()
            except OSError:
                continue  # the next attempt may succeed; a run that took over is noticed then
            if not generation and self._take(0):
                continue  # somebody deleted the object
            say(
                f"error: another run ({holder}) has taken over {self._path.parent}, because this "
                f"one was not heard of for {EXPIRES:.0f} s: it ends here, and loses nothing that "
                "was saved",
                error=True,
            )
            self._end(1)
            return
