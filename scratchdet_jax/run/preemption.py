"""SIGTERM, the notice before a machine is taken away: save, exit, and resume elsewhere."""

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
    """Handles SIGTERM while open as a context manager.

    Before `defer` and in `interruptible` parts there is nothing to save, so a SIGTERM raises
    Preempted at once. After `defer` it is recorded, and `reached` reports it.

    With several processes the signal may reach only one of them, or each at a different step. Then
    JAX's coordination service handles it and agrees on a step that all processes reach.
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
        """From now on, SIGTERM is recorded and the current step is finished."""
        self._deferred = True
        if self._noted:  # its exception was swallowed, for example in a garbage collector callback
            raise Preempted

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A part that SIGTERM may interrupt, because everything before it is saved."""
        self._deferred = False
        try:
            if self._noted:
                raise Preempted
            yield
        finally:
            self._deferred = True

    def reached(self) -> bool:
        """Whether the run must save and stop now; the same answer in all processes.

        All processes must call this after every update.
        """
        import jax  # imported late: train.py handles SIGTERM while JAX is being imported

        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            # JAX may schedule the stop at sync point 1, so the counter starts at 1.
            self._updates += 1
            return multihost_utils.reached_preemption_sync_point(self._updates)
        return self._noted

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._noted = True
        if not self._deferred:
            print("\nstopped by SIGTERM", file=sys.stderr, flush=True)
            raise Preempted
        print("\nSIGTERM: finishing and saving the current step", file=sys.stderr, flush=True)


def _listens() -> bool:
    """Whether this process handles SIGTERM itself; Python allows it only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return False
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return True  # process_count would start JAX, before the processes are joined
    return jax.process_count() == 1
