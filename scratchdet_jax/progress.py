"""Long work: its progress on stderr (a bar in a terminal, lines in a log file), and threads."""

import collections
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
R = TypeVar("R")

SECONDS = 5.0  # between plain lines, at least


class Progress:
    """Counts finished units of work, with the time left.

    Where stderr is not a terminal, at most one line every SECONDS is printed, without carriage
    returns or cursor codes. TQDM_DISABLE, which libraries heed as well, silences both forms.
    """

    def __init__(
        self, total: int, title: str, unit: str, initial: int = 0, *, rate: bool = False
    ) -> None:
        """Takes `total` units, `initial` of them done; with `rate`, plain lines show the rate."""
        self._rate = rate
        self._total, self._title, self._unit, self._done = total, title, unit, initial
        self._plain = not sys.stderr.isatty()
        self._bar: tqdm | None = None
        if not self._plain:
            self._bar = tqdm(
                total=total, initial=initial, desc=title, unit=unit, leave=False, dynamic_ncols=True
            )
        self._printed = time.monotonic()
        self._seconds, self._counted = 0.0, 0  # of work that counts for the time left
        self._since: float | None = time.monotonic()

    @property
    def is_complete(self) -> bool:
        """Returns whether all units are done."""
        return self._done >= self._total

    def update(self, note: str = "", units: int = 1) -> None:
        """Counts finished units; `note` is what there is to say about the last one."""
        self._done += units
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(units)
            return
        now = time.monotonic()
        if self._since is not None:
            self._seconds, self._since = self._seconds + now - self._since, now
            self._counted += units
        if now - self._printed >= SECONDS:
            self._printed = now
            self._print(note)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time spent inside, such as compilation, from the time left."""
        self._since = None
        yield
        self._since = time.monotonic()
        if self._bar is not None:
            self._bar.unpause()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()

    def _print(self, note: str) -> None:
        if os.environ.get("TQDM_DISABLE"):
            return
        parts = [f"{self._title}: {self._unit} {self._done}/{self._total}"]
        parts += [note] if note else []
        if self._counted and self._seconds >= 1:  # before, it is too early to estimate
            if self._rate:
                parts.append(f"{self._counted / self._seconds:.3g} {self._unit}s/s")
            left = max(0, self._total - self._done) * self._seconds / self._counted
            parts.append(f"{tqdm.format_interval(left)} left")
        print(", ".join(parts), file=sys.stderr, flush=True)


def track(items: Iterable[T], total: int, title: str, unit: str) -> Iterator[T]:
    """Yields the items; one is finished when the next is asked for."""
    with Progress(total, title, unit) as progress:
        for item in items:
            yield item
            progress.update()


def say(text: str, error: bool = False) -> None:
    """Prints a line on stdout, or on stderr if it is an `error`, without harm to a bar."""
    stream = sys.stderr if error else sys.stdout
    if sys.stderr.isatty():
        tqdm.write(text, file=stream)
    else:
        print(text, file=stream)


def usable_cores() -> int:
    """Returns the number of cores this process may use (a container's share, if reported)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_ahead(function: Callable[[T], R], items: Iterable[T], ahead: int = 0) -> Iterator[R]:
    """Yields the results of `map`, in order, computed on one thread per core.

    Args:
        function: called in the threads.
        items: iterated in the caller's thread.
        ahead: the largest number of items under way, or finished and not yielded; at least one per
            thread.
    """
    threads = usable_cores()
    pool = ThreadPoolExecutor(threads, "map_ahead")
    waiting: collections.deque[Future[R]] = collections.deque()
    ahead = max(ahead, threads)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            del item
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
