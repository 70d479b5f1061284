"""Ends a run that makes no progress: a stalled data source or a hung collective."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from scratchdet_jax.errors import Unavailable
from scratchdet_jax.mirror import Mirror

REPORT = "stalled.txt"
STALLED = Unavailable.status  # the exit status; the same command resumes


class Watchdog:
    """A thread that ends the process if it makes no progress for `seconds`.

    Progress is a completed step or evaluation batch; the first of each compiles, which must take
    less time than that. Waiting for a checkpoint (`paused`) is not watched.
    """

    def __init__(
        self, seconds: float, files: Mirror, end: Callable[[int], None] = os._exit
    ) -> None:
        """Starts watching unless `seconds` is 0; `end` is called with STALLED."""
        self._seconds, self._files, self._end = seconds, files, end
        # Time of the last progress; None while no progress is expected.
        self._last: float | None = time.monotonic()
        self._step = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if seconds > 0:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def beat(self, step: int | None = None) -> None:
        """Reports progress: update `step`, or a batch of the evaluation after it."""
        self._step, self._last = self._step if step is None else step, time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Suspends the watch: the body may take any time."""
        self._last = None
        yield
        self._last = time.monotonic()

    def close(self) -> None:
        """Stops watching."""
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _watch(self) -> None:
        interval = min(self._seconds / 10, 5.0)
        before = time.monotonic()
        while not self._stop.wait(interval):
            late = time.monotonic() - before - interval
            last = self._last
            if last is not None and late > interval:
                # The whole process was suspended (Ctrl-Z): that time does not count.
                last = self._last = min(last + late, time.monotonic())
            before = time.monotonic()
            if last is not None and time.monotonic() - last > self._seconds:
                self._report_stall()
                self._end(STALLED)
                return

    def _report_stall(self) -> None:
        sentence = (
            f"no progress for {self._seconds:g} s (config.stall_seconds) after step {self._step}: "
            "the data source or another process does not respond"
        )
        print(f"error: {sentence}; stacks of all threads:", file=sys.stderr, flush=True)
        if sys.__stderr__:
            _write_stacks(sentence, sys.__stderr__)
        report = self._files.folder / REPORT
        with contextlib.suppress(OSError), report.open("w", encoding="utf-8") as file:
            _write_stacks(sentence, file)
        # A bucket may be what does not respond.
        publishing = threading.Thread(target=self._files.publish, daemon=True)
        publishing.start()
        publishing.join(timeout=10)
        print(
            f"also written to {self._files.target / REPORT}; the same command resumes from the "
            "last checkpoint",
            file=sys.stderr,
            flush=True,
        )


def _write_stacks(sentence: str, file: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(sentence, file=file, flush=True)
        faulthandler.dump_traceback(file, all_threads=True)
