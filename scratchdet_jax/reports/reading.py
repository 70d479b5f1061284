"""Reads the logs of runs, names the runs, and makes curves of the records."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scratchdet_jax.config.defaults import WITHOUT_EFFECT, flatten
from scratchdet_jax.errors import UserError

# Runs that differ in more fields than this are named by their folders.
_FIELDS_IN_A_NAME = 6


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


def read_config(workdir: str | Path) -> dict[str, object] | None:
    """Reads the config from a run's newest checkpoint, by dotted field name; None without one."""
    if not (Path(workdir) / "checkpoints").is_dir():
        return None
    from scratchdet_jax.run.checkpoints import Checkpoints  # JAX and Orbax: slow

    checkpoints = Checkpoints(Path(workdir), read_only=True)
    try:
        step = checkpoints.latest_step
        return None if step is None else flatten(checkpoints.info(step).config)
    finally:
        checkpoints.close()


def run_names(workdirs: Sequence[str | Path]) -> list[str]:
    """Names the runs by the shortest ends of their paths that are all different.

    Raises:
        UserError: a folder is given twice.
    """
    paths = [Path(workdir).resolve() for workdir in workdirs]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"run {path} is given twice")
    longest = max(len(path.parts) for path in paths)
    for length in range(1, longest + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def label_by_difference(
    names: Sequence[str], configs: Sequence[dict[str, object] | None]
) -> list[str]:
    """Names curves by the fields in which the runs differ, among those that all configs have.

    Args:
        names: the names of runs without a config, and of all runs if no fields differ, or too many.
        configs: by dotted field name; None for a run without one.

    Returns:
        One label per run, such as "norm=none, learning_rate=0.005"; all are different.
    """
    known = [config for config in configs if config is not None]
    differing = [
        field
        for field in (known[0] if known else ())
        if field not in WITHOUT_EFFECT
        and all(field in config for config in known)
        and any(config[field] != known[0][field] for config in known)
    ]
    if not 0 < len(differing) <= _FIELDS_IN_A_NAME:
        return list(names)
    leaves = [field.rpartition(".")[2] for field in differing]
    shown = [
        leaf if leaves.count(leaf) == 1 else field
        for leaf, field in zip(leaves, differing, strict=True)
    ]
    labels = []
    for name, config in zip(names, configs, strict=True):
        fields = zip(shown, differing, strict=True)
        labels.append(
            name
            if config is None
            else ", ".join(f"{leaf}={_text(config[field])}" for leaf, field in fields)
        )
    return [
        label if labels.count(label) == 1 else f"{label} ({name})"
        for label, name in zip(labels, names, strict=True)
    ]


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


def series(records: Sequence[Mapping[str, Any]], field: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps int [n], values float [n]) of the records that have the field; null becomes NaN."""
    rows = [(record["step"], record[field]) for record in records if field in record]
    steps = np.array([step for step, _ in rows], np.int64)
    values = np.array([math.nan if value is None else value for _, value in rows], np.float64)
    return steps, values


def fluctuation(records: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps and the mean |‖g_t‖₂ − ‖g_{t−1}‖₂| as logged."""
    return series(records, "gradient_fluctuation")


def running(values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the mean, minimum and maximum [n − window + 1] of each window, without the NaN in it.

    A window of NaN alone gives NaN.
    """
    windows = np.lib.stride_tricks.sliding_window_view(values, window)
    finite = np.isfinite(windows)
    count = finite.sum(axis=-1)
    total = np.where(finite, windows, 0.0).sum(axis=-1)
    low = np.where(finite, windows, np.inf).min(axis=-1)
    high = np.where(finite, windows, -np.inf).max(axis=-1)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean, np.where(count > 0, low, np.nan), np.where(count > 0, high, np.nan)
