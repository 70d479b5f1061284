"""Ctrl-C (SIGINT) and SIGTERM as requests to stop: answered at once, never lost, no traceback.

An exception raised by a signal handler is unsafe in this program. Python runs handlers in the
main thread, and only when compiled code returns; the exception may be swallowed in a callback;
threads of libraries may crash while the interpreter unwinds. So a command blocks both signals, and
a thread of its own receives them (`listen`). While nothing can be lost, that thread ends the
process. While a step has to be saved first, it records the request, and the training loop asks
for it.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

INTERRUPTED = 130  # exit status after Ctrl-C: 128 + SIGINT
PREEMPTED = 75  # exit status after SIGTERM: EX_TEMPFAIL; the same command resumes
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_POLL = 0.2  # seconds between looks at which signals to receive


class Stopped(SystemExit):
    """A signal asked the run to stop, and its finished steps are saved; `code` is the status."""

    code: int

    def __init__(self, number: int) -> None:
        super().__init__(PREEMPTED if number == signal.SIGTERM else INTERRUPTED)


class Stop:
    """Knows whether a command was asked to stop, and what has to be done first.

    Inside `deferred`, a request is recorded and `requested` reports it. Inside `interruptible`, and
    outside of both, nothing is lost if the process ends. A second request ends a command at once.
    """

    def __init__(self) -> None:
        self.advice = ""  # what the user can do after a stop in which nothing was lost
        self.terminable = True  # SIGTERM is also a request to stop
        self._lock = threading.RLock()
        self._number: int | None = None  # of the first signal that came
        self._is_announced = False  # the user knows that the step will be saved
        # Completes what is under way and returns the sentence for the user; None: deferred.
        self._leave: Callable[[], str] | None = self._nothing_lost
        self._handles = {n for n in _SIGNALS if signal.getsignal(n) != signal.SIG_IGN}
        self._sync_points = 0

    @property
    def name(self) -> str:
        """Returns the request in a message: "Ctrl-C" or "SIGTERM"."""
        return _name(self._number)

    def error(self) -> Stopped:
        """Makes the error to raise once everything is saved."""
        return Stopped(self._number or signal.SIGINT)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Marks a part in which a step has to be saved before the process may end.

        Raises:
            Stopped: a request came before.
        """
        self.poll()
        with self._leaving_by(None):
            yield

    @contextlib.contextmanager
    def interruptible(self, leave: Callable[[], str]) -> Iterator[None]:
        """Marks a part, inside a deferred one, that a request may interrupt.

        With several processes it may not: all of them have to stop at the same step.

        `leave` completes what is under way elsewhere, such as the writing of a checkpoint, and
        returns the sentence for the user. It may be called in another thread.

        Raises:
            Stopped: a request came before.
        """
        if _several_processes():
            yield
            return
        with self._leaving_by(leave):
            self.poll()
            yield

    @contextlib.contextmanager
    def _leaving_by(self, leave: Callable[[], str] | None) -> Iterator[None]:
        with self._lock:
            before, self._leave = self._leave, leave
        try:
            yield
        finally:
            with self._lock:
                self._leave = before

    def poll(self) -> None:
        """Raises Stopped if a request came and nothing is lost by ending now."""
        with self._lock:
            if self._number is not None and self._leave is not None:
                _say(self._leave())
                raise self.error()

    def requested(self) -> bool:
        """Returns whether the run must save and stop now; the same answer in all processes.

        All processes must call this after every update.
        """
        if not _several_processes():
            return self._is_announced
        from jax.experimental import multihost_utils

        # JAX may schedule the stop at sync point 1, so the counter starts at 1.
        self._sync_points += 1
        if not multihost_utils.reached_preemption_sync_point(self._sync_points):
            return False
        self._number = self._number or signal.SIGTERM
        return True

    def processes_joined(self) -> None:
        """Leaves SIGTERM to JAX if there are several processes, which agree on a step to stop at.

        A request that came earlier is passed on.
        """
        if not _several_processes():
            return
        self._handles.discard(signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        if self._number is not None:
            os.kill(os.getpid(), signal.SIGTERM)

    def receive(self) -> None:
        """Blocks the signals and receives them in a thread, for the rest of the process."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._handles)
        threading.Thread(target=self._receive, name="signals", daemon=True).start()

    def _nothing_lost(self) -> str:
        return f"stopped by {self.name}" + (f": {self.advice}" if self.advice else "")

    def _announce(self) -> None:
        _say(f"{self.name}: finishing and saving the current step")
        self._is_announced = True
        if _several_processes():
            os.kill(os.getpid(), signal.SIGTERM)  # JAX tells the other processes

    def _receive(self) -> None:
        while True:
            found = signal.sigtimedwait(self._handles, _POLL)
            # A process that was suspended (Ctrl-Z) for longer than the timeout gets a result
            # without a signal when it continues (CPython).
            if found is None or found.si_signo not in self._handles:
                continue
            number = found.si_signo
            if number == signal.SIGTERM and not self.terminable:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
                os.kill(os.getpid(), signal.SIGTERM)  # ends the process as if nobody listened
            if self._number is not None:
                # No lock, no buffer: whatever is stuck, this ends the process.
                os.write(2, f"\nstopped at once by {_name(number)}\n".encode())
                os._exit(Stopped(number).code)
            self._number = number
            # Completing what is under way takes time; a second request must be heard meanwhile.
            threading.Thread(target=self.ask, args=(number,), name="stopping", daemon=True).start()

    def ask(self, number: int) -> None:
        """Acts on the first request: ends the process, or announces that a step is saved first."""
        with self._lock:
            self._number = number
            if self._leave is None:
                self._announce()
                return
            try:
                _say(self._leave())
            finally:
                leave_process(self.error().code)


_command: Stop | None = None


def listen() -> Stop:
    """Receives SIGINT and SIGTERM for this process; to be called before other threads start.

    Returns:
        The Stop of the command, the same at every call. SIGTERM ends the process as usual, until
        the command calls `resumable`.
    """
    global _command
    if _command is None:
        _command = Stop()
        _command.terminable = False
        _command.receive()
    return _command


def of_command() -> Stop | None:
    """Returns the Stop of this process if it is one of our commands; otherwise None."""
    return _command


def resumable(terminable: bool = False) -> None:
    """Says of the command that running it again continues its work.

    `terminable`: SIGTERM is a request to stop, as Ctrl-C is, and ends with its own status.
    """
    if _command is not None:
        _command.advice, _command.terminable = "run the same command to resume", terminable


def leave_process(status: int) -> None:
    """Ends the process without unwinding it, which could crash threads of libraries."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _name(number: int | None) -> str:
    return "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        start = "\n" if sys.stderr.isatty() else ""  # a progress bar has no end of line
        print(f"{start}{sentence}", file=sys.stderr, flush=True)


def _several_processes() -> bool:
    jax = sys.modules.get("jax")
    if jax is None:
        return False
    joined = getattr(getattr(jax, "distributed", None), "is_initialized", None)
    # process_count would initialise JAX, which must not happen before the processes are joined;
    # and the import of JAX may be under way.
    return joined is not None and joined() and jax.process_count() > 1
