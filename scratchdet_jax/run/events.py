"""Files that grow during a run and must not end it: JSON lines and TensorBoard events.

A full disk is told once; training goes on, and lines that found no room are written when there is
some again. (tensorboardX's own SummaryWriter blocks for ever once its thread could not write.)
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

EVENTS_FLUSHED_EVERY = 30.0  # seconds


class JsonLines:
    """Appends lines to a file, whole or not at all."""

    def __init__(self, path: Path, waiting: Sequence[str] = ()) -> None:
        """`waiting`: lines of before that found no room on the disk."""
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.waiting = list(waiting)
        self._told = False

    def append(self, line: str) -> None:
        """Writes a line (without its end), after those that wait; never raises OSError."""
        self.waiting.append(line)
        while self.waiting:
            whole = os.fstat(self._file).st_size
            data = (self.waiting[0] + "\n").encode()
            try:
                if os.write(self._file, data) < len(data):
                    raise OSError("no room for the whole line")
            except OSError as error:
                os.ftruncate(self._file, whole)  # half a line would spoil the next
                self._tell(error)
                return
            self.waiting.pop(0)

    def sync(self) -> None:
        """Returns when the lines have reached the disk itself."""
        try:
            os.fsync(self._file)
        except OSError as error:
            self._tell(error)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _tell(self, error: OSError) -> None:
        if not self._told:
            print(
                f"\nwarning: {self._path} cannot be written ({error.strerror or error}): training "
                "goes on, and its lines are kept until there is room",
                file=sys.stderr,
            )
        self._told = True


class Events:
    """Scalars for TensorBoard, written in this thread."""

    def __init__(self, workdir: Path, purge_step: int) -> None:
        """What an earlier process wrote from `purge_step` on is hidden."""
        self._writer: EventsWriter | None = None
        self._flushed = time.monotonic()
        try:
            # Two processes of one second must not share a file.
            self._writer = EventsWriter(str(workdir / "events"), f".{os.getpid()}")
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(
                Event(wall_time=time.time(), step=purge_step, session_log=start)
            )
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """One point of a curve."""
        if self._writer is None:
            return
        try:
            self._writer.write_event(
                Event(wall_time=time.time(), step=step, summary=scalar(tag, value))
            )
            if time.monotonic() - self._flushed > EVENTS_FLUSHED_EVERY:
                self._flushed = time.monotonic()
                self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Writes what is buffered and closes the file."""
        if self._writer is None:
            return
        try:
            self._writer.close()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        print(
            f"\nwarning: TensorBoard's events cannot be written ({error.strerror or error}): they "
            "end here; metrics.jsonl has the same figures",
            file=sys.stderr,
        )
