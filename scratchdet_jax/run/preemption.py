"""SIGTERM, the notice before a machine is taken away: save at once, leave, go on elsewhere."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from scratchdet_jax.errors import Preempted


class Preemption:
    """Whether a SIGTERM came; a context manager that listens while it is open.

    At its start and in `interruptible` parts, where there is nothing to save, a SIGTERM raises
    Preempted there and then. Between `defer` and the end it is noted for `reached`.

    With several processes the notice may reach one of them, or each at another step. Then JAX's
    coordination service listens in its place and finds a step that all processes come to.
    """

    def __init__(self) -> None:
        self._noted, self._deferred, self._updates = False, False, 0
        self._before: Any = None

    def __enter__(self) -> "Preemption":
        if _listens():
            self._before = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def processes_joined(self) -> None:
        """Passes an earlier SIGTERM on to JAX, which listens once several processes are joined."""
        if self._noted and not _listens():
            os.kill(os.getpid(), signal.SIGTERM)

    def defer(self) -> None:
        """From now on SIGTERM is noted and the step under way is finished."""
        self._deferred = True
        if self._noted:  # what it raised was swallowed, as in a callback of the collector
            raise Preempted

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A part that a SIGTERM may break off, for all that went before it is saved."""
        self._deferred = False
        try:
            if self._noted:
                raise Preempted
            yield
        finally:
            self._deferred = True

    def reached(self) -> bool:
        """Whether the run is to be saved and left now; the same answer in all processes.

        To be asked after every update, by all.
        """
        import jax  # not before it is needed: train.py listens while JAX is imported

        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            # JAX counts from 0, the start of the process: a notice of before the first update is
            # for number 1, and that number has to come.
            self._updates += 1
            return multihost_utils.reached_preemption_sync_point(self._updates)
        return self._noted

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._noted = True
        if not self._deferred:
            print("\nstopped by SIGTERM", file=sys.stderr, flush=True)
            raise Preempted
        print("\nSIGTERM: the step under way is finished and saved", file=sys.stderr, flush=True)


def _listens() -> bool:
    """Whether this process handles SIGTERM itself: Python does so in its main thread only."""
    if threading.current_thread() is not threading.main_thread():
        return False
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return True  # asking for the number of processes would start JAX, too early to join others
    return jax.process_count() == 1
