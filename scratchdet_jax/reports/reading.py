"""Reads the logs of runs, names the runs, and makes curves of the records."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scratchdet_jax.errors import UserError


class RunRecords(NamedTuple):
    """The records of one run, each kind in order of step.

    Attributes:
        name: name of the curve.
        train: records of kind "train".
        eval: records of kind "eval".
        diverged_at: the step at which the run stopped because a value was not finite.
    """

    name: str
    train: list[dict[str, Any]]
    eval: list[dict[str, Any]]
    diverged_at: int | None = None

    def curve(self, field: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the `series` of a field of the log."""
        return series(self.eval if field == "mAP" else self.train, field)


def read_run(workdir: str | Path, name: str) -> RunRecords:
    """Reads the metrics.jsonl of a work folder.

    If a step is there twice, the later record is used. A truncated last line (the run was killed,
    or is writing it now) is skipped with a warning on stderr.

    Raises:
        UserError: the file is missing, has no records, or is garbled.
    """
    path = Path(workdir) / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give the work folder of a run"
        ) from error
    records: dict[str, dict[int, dict[str, Any]]] = {"train": {}, "eval": {}, "diverged": {}}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            kind, step = record["kind"], int(record["step"])
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                print(f"warning: {path}: the last line is truncated; skipped", file=sys.stderr)
                continue
            raise UserError(
                f"{path}, line {number} is not a record with 'kind' and 'step': the file is garbled"
            ) from error
        if kind in records:
            records[kind][step] = record
    train, evaluation, diverged = ([kept[s] for s in sorted(kept)] for kept in records.values())
    if not train and not evaluation and not diverged:
        raise UserError(f"{path} has no records yet: there is nothing to plot")
    return RunRecords(name, train, evaluation, diverged[-1]["step"] if diverged else None)


def run_names(workdirs: Sequence[str | Path]) -> list[str]:
    """Names the runs by the shortest ends of their paths that are all different.

    Raises:
        UserError: a folder is given twice.
    """
    paths = [Path(workdir).resolve() for workdir in workdirs]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"run {path} is given twice")
    length, names = 1, [path.name for path in paths]
    while len(set(names)) < len(names):
        length += 1
        names = ["/".join(path.parts[-length:]) for path in paths]
    return names


def series(records: Sequence[Mapping[str, Any]], field: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps int [n] and values float [n] of a field; null becomes NaN.

    Records without the field, or with something else than a number in it, are passed over.
    """
    numbers = int | float | None
    rows = [(r["step"], r[field]) for r in records if isinstance(r.get(field, ""), numbers)]
    steps = np.array([step for step, _ in rows], np.int64)
    values = np.array([math.nan if value is None else value for _, value in rows], np.float64)
    return steps, values


def running(values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the mean, minimum and maximum [n − window + 1] of each window, without the NaN in it.

    A window of NaN alone gives NaN.
    """
    windows = np.ma.masked_invalid(np.lib.stride_tricks.sliding_window_view(values, window))
    mean, low, high = windows.mean(axis=-1), windows.min(axis=-1), windows.max(axis=-1)
    return mean.filled(np.nan), low.filled(np.nan), high.filled(np.nan)
