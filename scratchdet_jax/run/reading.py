"""Reads the log of a run."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from scratchdet_jax.config.fields import flatten
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
    """The config of a run by dotted field name, from the newest checkpoint; None without one."""
    if not (Path(workdir) / "checkpoints").is_dir():
        return None
    from scratchdet_jax.run.checkpoints import Checkpoints  # JAX and Orbax: slow

    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        step = checkpoints.latest_step
        return None if step is None else flatten(checkpoints.info(step).config)
    finally:
        checkpoints.close()
