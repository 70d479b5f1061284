"""Metrics of a run: JSON lines, TensorBoard events, a progress bar, and a check for NaN.

A full disk does not end a run: it is reported once, and the lines are written when there is room
again. (The SummaryWriter of tensorboardX blocks forever once its thread could not write.)
"""

import contextlib
import json
import math
import os
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import image, scalar

from scratchdet_jax.errors import UserError, one_line
from scratchdet_jax.files import write_text_atomically
from scratchdet_jax.mirror import Mirror
from scratchdet_jax.parallel.processes import is_first
from scratchdet_jax.progress import Progress, say
from scratchdet_jax.run.state import FINITE

METRICS = "metrics.jsonl"
EVENTS_FLUSHED_EVERY = 30.0  # seconds
MEASURED = ("images_per_second", "loader_wait", "host_memory", "device_memory")
"""Fields of a training line that say how the machine did; two equal runs differ in them."""


class Diverged(UserError):
    """A quantity of an update is not finite; the state is still the one before the update."""

    def __init__(self, step: int, quantity: str, sentence: str) -> None:
        super().__init__(sentence)
        self.step, self.quantity = step, quantity


class MetricLogger:
    """Logs each step one step late, so that reading metrics never stalls the device.

    `metrics.jsonl` has one JSON object per line: `{"kind": "train", "step": …}` every
    `log_every` updates (the values of that step; `images_per_second` since the previous line) and
    `{"kind": "eval", "step": …}` for each evaluation. A run that diverges ends with
    `{"kind": "diverged", "step": …, "quantity": …}`. Process 0 writes; all processes check.

    `gradient_fluctuation` is the mean of |‖g_t‖₂ − ‖g_{t−1}‖₂| over *every* step since the previous
    line, so its meaning does not depend on `log_every`. The first step has none.

    `loader_wait` is the share of the time since the previous line in which the loop waited for the
    next batch. `host_memory` is the largest memory of the process so far, in bytes, and
    `device_memory` that of the fullest local device, where devices report it.
    """

    def __init__(
        self,
        files: Mirror,
        *,
        start_step: int,
        num_steps: int,
        batch_size: int,
        log_every: int,
        progress: Mapping[str, Any] | None = None,
        evaluated: bool = True,
    ) -> None:
        """Removes the lines of steps after `start_step`, which a killed run left.

        Args:
            files: the folder for the files.
            start_step: number of updates made so far.
            num_steps: number of updates of the complete run.
            batch_size: images per update.
            log_every: updates between lines.
            progress: the result of `progress()` at `start_step`.
            evaluated: whether the evaluation at `start_step` is complete; if not, its line is
                removed too.
        """
        self._files, self.path = files, files.folder / METRICS
        self._lines, self._events = None, None
        if is_first():
            _drop_lines_after(self.path, start_step, evaluated)
            self._lines = JsonLines(self.path)
            self._events = Events(files.folder, purge_step=start_step + 1)
        self._progress = Progress(num_steps, "training", "step", start_step)
        self._note = ""  # what the last logged step said
        self._batch_size, self._log_every = batch_size, log_every
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._since, self._images, self._waited = time.perf_counter(), 0, 0.0
        progress = progress or {"norm": None, "changes": ()}
        self._norm: float | None = progress["norm"]
        self._changes: list[float] = list(progress["changes"])

    def log_step(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Accepts the metrics of update `step` (from 1) and writes those of the previous one."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Writes the pending step.

        Raises:
            Diverged: a metric, or an array reported by FINITE, is not finite; names step and
                quantity.
        """
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._check_finite(step, values)
        values = {name: value for name, value in values.items() if not name.startswith(FINITE)}
        norm = values.get("gradient_norm")
        if norm is not None and self._norm is not None:
            self._changes.append(abs(norm - self._norm))
        self._norm = norm
        self._images += self._batch_size
        if step % self._log_every == 0:
            now = time.perf_counter()
            values["images_per_second"] = self._images / (now - self._since)
            values["loader_wait"] = min(self._waited / (now - self._since), 1.0)
            values |= _peak_memory()
            self._since, self._images, self._waited = now, 0, 0.0
            if self._changes:
                values["gradient_fluctuation"] = sum(self._changes) / len(self._changes)
                self._changes = []
            self._write("train", step, values)
            rate = values["images_per_second"]
            self._note = f"loss {values['loss']:.3f}, {rate:.1f} images/s"
        self._progress.update(self._note)

    def log_evaluation(self, step: int, results: Mapping[str, Any]) -> None:
        """Writes an evaluation's results: numbers, and numbers by class; texts are left out."""
        figures = {name: value for name, value in results.items() if not isinstance(value, str)}
        self._write("eval", step, figures)

    def log_pictures(self, step: int, pictures: Iterable[tuple[str, np.ndarray]]) -> None:
        """Writes (name, uint8 [H, W, 3] RGB) to TensorBoard; a failure is only a warning."""
        if not self._events:
            return
        try:
            for name, picture in pictures:
                summary = image(f"eval/{name}", picture, dataformats="HWC")
                self._events.write(step=step, summary=summary)
        except Exception as error:
            say(f"warning: the pictures of step {step} failed ({one_line(error)})", error=True)

    def progress(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps so that a resumed run logs like an uninterrupted one.

        Also waits until all lines written so far are on the disk.
        """
        if self._lines:
            self._lines.sync()
        return {"norm": self._norm, "changes": list(self._changes)}

    def sync(self) -> None:
        """Returns when everything logged so far has reached the disk, or the bucket."""
        for file in (self._events, self._lines):
            if file:
                file.sync()
        try:
            self._files.publish()
        except OSError as error:
            say(
                f"warning: {self._files.target} cannot be written ({error.strerror or error}): "
                "training continues, and the log is written later",
                error=True,
            )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time spent inside from images/s."""
        started = time.perf_counter()
        with self._progress.paused():
            yield
        self._since += time.perf_counter() - started

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time spent inside as waiting for the loader."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def close(self) -> None:
        """Closes the files and the bar."""
        self._progress.close()
        for file in (self._events, self._lines):
            if file:
                file.close()

    def _check_finite(self, step: int, values: dict[str, float]) -> None:
        # Flags of statistics and parameters name the cause only if no metric does.
        causes = {n: f"{n} is {v}" for n, v in values.items() if not math.isfinite(v)} | {
            n.removeprefix(FINITE): f"{n.removeprefix(FINITE)} are not finite"
            for n, v in values.items()
            if n.startswith(FINITE) and not v
        }
        for name, cause in causes.items():
            value = str(values.get(name, math.nan))
            self._append("diverged", step, {"quantity": name, "value": value})
            raise Diverged(
                step,
                name,
                f"training diverged: {cause} at step {step} (learning rate "
                f"{values['learning_rate']:.3g}); "
                f"earlier checkpoints are kept in {self._files.target}; lower "
                "config.optimizer.learning_rate or increase config.optimizer.warmup_steps, and "
                "start in a new --workdir",
            )

    def _append(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        if self._lines:
            record = {"kind": kind, "step": step, **values}
            self._lines.append(json.dumps(record, allow_nan=False))

    def _write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        self._append(kind, step, values)
        if not self._events:
            return
        for name, value in values.items():
            group = value if isinstance(value, dict) else {"": value}
            for part, number in group.items():
                if number is not None:
                    tag = f"{kind}/{name}" + (f"/{part}" if part else "")
                    self._events.write(step=step, summary=scalar(tag, number))


def _peak_memory() -> dict[str, float]:
    """Returns the peak memory so far, in bytes, of this process and of the fullest local device."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"host_memory": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    used = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    return peaks | ({"device_memory": float(max(used))} if used else {})


def _drop_lines_after(path: Path, step: int, evaluated: bool) -> None:
    """Removes what a killed run wrote after its last checkpoint, and a truncated last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
            again = record["kind"] == "eval" and record["step"] == step and not evaluated
            if record["step"] <= step and not again:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    write_text_atomically(path, "".join(kept))  # a kill must not lose the history


class JsonLines:
    """Appends lines to a file, each completely or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.waiting: list[str] = []
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
        with self._until_full():
            # Two processes started in the same second must not share a file.
            self._writer = EventsWriter(str(workdir / "events"), f".{os.getpid()}")
        self.write(step=purge_step, session_log=SessionLog(status=SessionLog.START))
        self.sync()

    def write(self, **fields: Any) -> None:
        """Writes an event: a point of a curve, a picture, or the start of a session."""
        if self._writer:
            with self._until_full():
                self._writer.write_event(Event(wall_time=time.time(), **fields))
        if time.monotonic() - self._flushed > EVENTS_FLUSHED_EVERY:
            self.sync()

    def sync(self) -> None:
        """Writes what is buffered."""
        self._flushed = time.monotonic()
        if self._writer:
            with self._until_full():
                self._writer.flush()

    def close(self) -> None:
        """Writes what is buffered and closes the file."""
        if self._writer:
            with self._until_full():
                self._writer.close()

    @contextlib.contextmanager
    def _until_full(self) -> Iterator[None]:
        """Ends the events, with a warning, if the body cannot write."""
        try:
            yield
        except OSError as error:
            self._writer = None
            say(
                f"warning: TensorBoard events cannot be written ({error.strerror or error}): they "
                "end here; metrics.jsonl has the same values",
                error=True,
            )
