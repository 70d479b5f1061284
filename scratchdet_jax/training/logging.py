"""Metrics of a run: JSON lines, TensorBoard events, a progress bar, and the non-finite check."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm

from scratchdet_jax.errors import UserError


class MetricLogger:
    """Logs each step one step late, so that reading a metric never stalls the device's queue.

    ``metrics.jsonl`` holds one JSON object a line: ``{"kind": "train", "step": …}`` every
    ``log_every`` updates (that step's own values; ``images_per_second`` over the time since the
    line before) and ``{"kind": "eval", "step": …}`` for each evaluation. A run that diverges ends
    with ``{"kind": "diverged", "step": …, "quantity": …}``.

    ``gradient_fluctuation`` is the mean of |‖g_t‖₂ − ‖g_{t−1}‖₂| over *every* step since the line
    before, so it means the same whatever ``log_every`` is. The first step has none.
    """

    def __init__(
        self, workdir: Path, *, start_step: int, num_steps: int, batch_size: int, log_every: int
    ) -> None:
        """Lines of steps after ``start_step`` (of a run that died) are removed."""
        self.path = Path(workdir) / "metrics.jsonl"
        last = _drop_lines_after(self.path, start_step)
        self._file = self.path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(workdir), purge_step=start_step + 1)
        self._bar = tqdm(total=num_steps, initial=start_step, unit="step", dynamic_ncols=True)
        self._batch_size, self._log_every = batch_size, log_every
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._since, self._images = time.perf_counter(), 0
        self._norm = last.get("gradient_norm") if last.get("step") == start_step else None
        self._changes: list[float] = []

    def log_step(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of update ``step`` (from 1); writes those of the update before."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Writes the pending step.

        Raises:
          UserError: a metric is not finite; names the step and the quantity.
        """
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._check_finite(step, values)
        self._follow_norm(values.get("gradient_norm"))
        self._images += self._batch_size
        self._bar.update()
        if step % self._log_every == 0:
            now = time.perf_counter()
            values["images_per_second"] = self._images / (now - self._since)
            self._since, self._images = now, 0
            if self._changes:
                values["gradient_fluctuation"] = sum(self._changes) / len(self._changes)
                self._changes = []
            self._write("train", step, values)
            self._bar.set_postfix_str(
                f"loss {values['loss']:.3f}, {values['images_per_second']:.1f} images/s"
            )

    def log_evaluation(self, step: int, results: dict[str, object]) -> None:
        """Writes an evaluation's results (numbers, or numbers by class)."""
        self._write("eval", step, results)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count in images/s."""
        started = time.perf_counter()
        yield
        self._since += time.perf_counter() - started

    def close(self) -> None:
        """Closes the files and the bar."""
        self._bar.close()
        self._events.close()
        self._file.close()

    def _follow_norm(self, norm: float | None) -> None:
        if norm is not None and self._norm is not None:
            self._changes.append(abs(norm - self._norm))
        self._norm = norm

    def _check_finite(self, step: int, values: dict[str, float]) -> None:
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        if wrong:
            rate = values["learning_rate"]
            self._append("diverged", step, {"quantity": wrong[0], "value": str(values[wrong[0]])})
            raise UserError(
                f"training diverged: {wrong[0]} is {values[wrong[0]]} at step {step} (learning "
                f"rate {rate:.3g}); the checkpoints before it are kept in "
                f"{self.path.parent}; lower config.optimizer.learning_rate or lengthen "
                "config.optimizer.warmup_steps, and start in a new --workdir"
            )

    def _append(self, kind: str, step: int, values: dict[str, object]) -> None:
        self._file.write(json.dumps({"kind": kind, "step": step} | values, allow_nan=False) + "\n")
        self._file.flush()

    def _write(self, kind: str, step: int, values: dict[str, object]) -> None:
        self._append(kind, step, values)
        for name, value in values.items():
            group = value if isinstance(value, dict) else {"": value}
            for part, number in group.items():
                if number is not None:
                    tag = f"{kind}/{name}" + (f"/{part}" if part else "")
                    self._events.add_scalar(tag, number, step)


def _drop_lines_after(path: Path, step: int) -> dict[str, object]:
    """Removes what a dead run wrote after the checkpoint that is resumed, and a torn last line.

    Returns:
      The last training line that is kept; empty if there is none.
    """
    if not path.exists():
        return {}
    kept, last = [], {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
            if record["step"] <= step:
                kept.append(line + "\n")
                last = record if record["kind"] == "train" else last
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    whole = path.with_suffix(".tmp")  # a kill in here must not cost the history
    whole.write_text("".join(kept), encoding="utf-8")
    whole.replace(path)
    return last
