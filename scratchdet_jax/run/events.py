"""Log files that must not end a run: JSON lines and TensorBoard events.

A full disk is reported once; training continues, and the lines are written when there is room
again. (The SummaryWriter of tensorboardX blocks forever once its thread could not write.)
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import image, scalar

from scratchdet_jax.progress import say

EVENTS_FLUSHED_EVERY = 30.0  # seconds


class JsonLines:
    """Appends lines to a file, each completely or not at all."""

    def __init__(self, path: Path, waiting: Sequence[str] = ()) -> None:
        """Takes `waiting`: earlier lines that did not fit on the disk."""
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.waiting = list(waiting)
        self._reported = False

    def append(self, line: str) -> None:
        """Writes a line (given without newline) after the waiting ones; never raises OSError."""
        self.waiting.append(line)
        while self.waiting:
            complete = os.fstat(self._file).st_size
            data = (self.waiting[0] + "\n").encode()
            try:
                if os.write(self._file, data) < len(data):
                    raise OSError("no room for the complete line")
            except OSError as error:
                os.ftruncate(self._file, complete)  # a partial line would corrupt the next one
                self._report(error)
                return
            self.waiting.pop(0)

    def sync(self) -> None:
        """Returns when the lines have reached the disk."""
        try:
            os.fsync(self._file)
        except OSError as error:
            self._report(error)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _report(self, error: OSError) -> None:
        if not self._reported:
            say(
                f"warning: {self._path} cannot be written ({error.strerror or error}): training "
                "continues, and lines are kept until there is room",
                error=True,
            )
        self._reported = True


class Events:
    """Scalars and pictures for TensorBoard, written in this thread."""

    def __init__(self, workdir: Path, purge_step: int) -> None:
        """Hides what an earlier process wrote from `purge_step` on."""
        self._writer: EventsWriter | None = None
        self._flushed = time.monotonic()
        try:
            # Two processes started in the same second must not share a file.
            self._writer = EventsWriter(str(workdir / "events"), f".{os.getpid()}")
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(
                Event(wall_time=time.time(), step=purge_step, session_log=start)
            )
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Adds one point to a curve."""
        self._add(scalar(tag, value), step)

    def add_picture(self, tag: str, picture: np.ndarray, step: int) -> None:
        """Adds a picture, uint8 [H, W, 3] RGB."""
        self._add(image(tag, picture, dataformats="HWC"), step)

    def _add(self, summary: Summary, step: int) -> None:
        if self._writer is None:
            return
        try:
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
            if time.monotonic() - self._flushed > EVENTS_FLUSHED_EVERY:
                self._flushed = time.monotonic()
                self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def sync(self) -> None:
        """Writes what is buffered."""
        if self._writer is None:
            return
        try:
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
        say(
            f"warning: TensorBoard events cannot be written ({error.strerror or error}): they "
            "end here; metrics.jsonl has the same values",
            error=True,
        )
