"""Measures the time from the command to the first step, of a new and of a resumed run.

python -m benchmarks.startup --config=configs/shapes.py [--config.FIELD=VALUE …]

Measures without a compilation cache, with an empty one and with a full one. A step is done when its
line is in metrics.jsonl, which is one step later. In between, SIGTERM stops and saves the run.
The data sets must be prepared already.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from scratchdet_jax import cli
from scratchdet_jax.errors import UserError
from scratchdet_jax.stopping import PREEMPTED

ROOT = Path(__file__).resolve().parents[1]


def first_step(command: Sequence[str], workdir: Path, log: Path, leave: bool) -> float:
    """Times a command to its first new line in the log, in seconds; then stops the run."""
    metrics = workdir / "metrics.jsonl"
    before = _lines(metrics)
    start = time.perf_counter()
    with log.open("ab") as file:
        running = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
    while _lines(metrics) <= before:
        if running.poll() is not None:
            raise UserError(f"the run exited with {running.returncode}:\n{log.read_text()}")
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    running.send_signal(signal.SIGTERM if leave else signal.SIGKILL)
    status = running.wait()
    if leave and status != PREEMPTED:
        raise UserError(f"the run exited with {status} after SIGTERM:\n{log.read_text()}")
    return seconds


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def parser(program: str) -> argparse.ArgumentParser:
    """Returns the options of the command line, without the overrides."""
    parser = argparse.ArgumentParser(
        prog=program,
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="recipe; its fields can be overridden")
    return parser


def main(argv: Sequence[str]) -> None:
    """Measures and prints a table, and the figures as JSON."""
    options, overrides = parser(argv[0]).parse_known_args(argv[1:])
    if not options.config:
        raise UserError("name a recipe: --config=FILE")
    arguments = [f"--config={options.config}", *overrides]
    arguments += ["--config.log_every=1", "--config.data.eval="]
    rows: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        base, log = Path(folder), Path(folder) / "log"
        train = [sys.executable, str(ROOT / "train.py"), *arguments]
        for kind in ("no cache", "empty cache", "full cache"):
            workdir = base / kind.replace(" ", "_")
            cache = "" if kind == "no cache" else str(base / "cache")
            command = [*train, f"--workdir={workdir}", f"--config.compilation_cache={cache}"]
            rows[f"first step, {kind}, s"] = first_step(command, workdir, log, leave=True)
            rows[f"first step after resuming, {kind}, s"] = first_step(
                command, workdir, log, leave=False
            )
        size = sum(p.stat().st_size for p in (base / "cache").rglob("*") if p.is_file())
        rows["cache, MiB"] = size / 2**20
    print(f"start-up, {' '.join(arguments)}, {os.cpu_count()} cores")
    for name, value in rows.items():
        print(f"  {name:<44} {value:.1f}")
    print(json.dumps(rows))


if __name__ == "__main__":
    cli.run(main)
