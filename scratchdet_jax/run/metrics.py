"""Metrics of a run: JSON lines, TensorBoard events, a progress bar, and a check for NaN."""

import json
import math
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scratchdet_jax.errors import UserError, one_line
from scratchdet_jax.files import write_text_atomically
from scratchdet_jax.parallel.processes import is_first
from scratchdet_jax.progress import Progress, say
from scratchdet_jax.run.events import Events, JsonLines
from scratchdet_jax.run.state import FINITE

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
        workdir: Path,
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
            workdir: folder for the files.
            start_step: number of updates made so far.
            num_steps: number of updates of the complete run.
            batch_size: images per update.
            log_every: updates between lines.
            progress: the result of `progress()` at `start_step`.
            evaluated: whether the evaluation at `start_step` is complete; if not, its line is
                removed too.
        """
        self.path = Path(workdir) / "metrics.jsonl"
        self._lines, self._events = None, None
        if is_first():
            _drop_lines_after(self.path, start_step, evaluated)
            waiting = (progress or {}).get("lines", ())
            written = (
                set(self.path.read_text().splitlines()) if waiting and self.path.exists() else ()
            )
            self._lines = JsonLines(self.path, [line for line in waiting if line not in written])
            self._events = Events(Path(workdir), purge_step=start_step + 1)
        self._progress = Progress(num_steps, "training", "step", start_step)
        self._note = ""  # what the last logged step said
        self._batch_size, self._log_every = batch_size, log_every
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._since, self._images, self._waited = time.perf_counter(), 0, 0.0
        self._norm: float | None = progress["norm"] if progress else None
        self._changes: list[float] = list(progress["changes"]) if progress else []

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
        self._follow_norm(values.get("gradient_norm"))
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

    def log_evaluation(self, step: int, results: dict[str, object]) -> None:
        """Writes an evaluation's results: numbers, and numbers by class; texts are left out."""
        figures = {name: value for name, value in results.items() if not isinstance(value, str)}
        self._write("eval", step, figures)

    def log_pictures(self, step: int, pictures: Iterable[tuple[str, np.ndarray]]) -> None:
        """Writes (name, uint8 [H, W, 3] RGB) to TensorBoard; a failure is only a warning."""
        if not self._events:
            return
        try:
            for name, picture in pictures:
                self._events.add_picture(f"eval/{name}", picture, step)
        except Exception as error:
            say(f"warning: the pictures of step {step} failed ({one_line(error)})", error=True)

    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps so that a resumed run logs the same as an uninterrupted one.

        Also waits until all lines written so far are on the disk.
        """
        if self._lines:
            self._lines.sync()
        waiting = self._lines.waiting if self._lines else []
        return {"norm": self._norm, "changes": list(self._changes), "lines": list(waiting)}

    def sync(self) -> None:
        """Returns when everything logged so far has reached the disk."""
        for file in filter(None, (self._events, self._lines)):
            file.sync()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time spent inside from images/s."""
        started = time.perf_counter()
        with self._progress.paused():
            yield
        self._since += time.perf_counter() - started

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time spent inside as waiting for the loader."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def close(self) -> None:
        """Closes the files and the bar."""
        self._progress.close()
        for file in filter(None, (self._events, self._lines)):
            file.close()

    def _follow_norm(self, norm: float | None) -> None:
        if norm is not None and self._norm is not None:
            self._changes.append(abs(norm - self._norm))
        self._norm = norm

    def _check_finite(self, step: int, values: dict[str, float]) -> None:
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        # Flags of statistics and parameters; they name the cause only if no metric does.
        wrong += [
            n.removeprefix(FINITE) for n, v in values.items() if n.startswith(FINITE) and not v
        ]
        if wrong:
            name, rate = wrong[0], values["learning_rate"]
            value = values.get(name, math.nan)
            self._append("diverged", step, {"quantity": name, "value": str(value)})
            cause = f"{name} is {value}" if name in values else f"{name} are not finite"
            raise Diverged(
                step,
                name,
                f"training diverged: {cause} at step {step} (learning rate {rate:.3g}); "
                f"earlier checkpoints are kept in {self.path.parent}; lower "
                "config.optimizer.learning_rate or increase config.optimizer.warmup_steps, and "
                "start in a new --workdir",
            )

    def _append(self, kind: str, step: int, values: dict[str, object]) -> None:
        if self._lines:
            record = {"kind": kind, "step": step} | values
            self._lines.append(json.dumps(record, allow_nan=False))

    def _write(self, kind: str, step: int, values: dict[str, object]) -> None:
        self._append(kind, step, values)
        if not self._events:
            return
        for name, value in values.items():
            group = value if isinstance(value, dict) else {"": value}
            for part, number in group.items():
                if number is not None:
                    tag = f"{kind}/{name}" + (f"/{part}" if part else "")
                    self._events.add_scalar(tag, number, step)


def _peak_memory() -> dict[str, float]:
    """The largest memory so far, in bytes: of this process, and of the fullest local device."""
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
