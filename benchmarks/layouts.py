"""Compares one run in several layouts of processes and devices.

python -m benchmarks.layouts --data_dir=data --layouts=1x1,2x4

A layout is PROCESSESxDEVICES: that many real processes on this machine, each with that many CPU
devices. In each layout, trains the detector of `make demo` on `shapes` for 30 steps in float32 and
scores it; prints how far losses and AP are from the first layout's.
`--init_from=runs/shapes` starts from the detector trained by `make demo`, so that there is an AP to
compare; a new detector amplifies rounding tenfold per step at a recipe's rate (docs/results.md).
"""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from scratchdet_jax import cli
from scratchdet_jax.errors import UserError
from scratchdet_jax.files import write_json

ROOT = Path(__file__).parents[1]
FIELDS = {
    "data.eval": "shapes:validation[:96]",
    "batch_size": 16,
    "eval.batch_size": 16,
    "num_steps": 30,
    "log_every": 1,
    "eval.every_steps": 0,
    "data.threads": 1,
}


class Curve(NamedTuple):
    """The log of a run: the loss of each step, and the final mAP."""

    losses: list[float]
    ap: float


def parse_layout(text: str) -> tuple[int, int]:
    """Parses "2x4" to (processes, devices per process); UserError if it is not a layout."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise UserError(f"--layouts has {text!r}: write PROCESSESxDEVICES, such as 2x4")
    return int(match[1]), int(match[2])


def run(processes: int, devices: int, arguments: Sequence[str], limit: float) -> None:
    """Runs train.py as several processes; UserError with the end of the output if one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
        f"--xla_force_host_platform_device_count={devices}",
    }
    with tempfile.TemporaryFile("w+") as output:
        started = []
        for index in range(processes):
            place = (
                []
                if processes == 1
                else [
                    f"--coordinator={address}",
                    f"--num_processes={processes}",
                    f"--process_id={index}",
                ]
            )
            command = [sys.executable, "train.py", *arguments, *place]
            started.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
            )
        try:
            codes = [process.wait(limit) for process in started]
        except subprocess.TimeoutExpired:
            raise UserError(f"a run took more than --limit={limit} seconds") from None
        finally:
            for process in started:
                process.kill()
        if any(codes):
            output.seek(0)
            raise UserError(f"a run exited with {codes}: {output.read()[-2000:]}")


def measure(processes: int, devices: int, parallel: str, values: flags.FlagValues) -> Curve:
    """Trains and scores in one layout, in a temporary folder."""
    fields = FIELDS | {
        "parallel": parallel,
        "model.norm_span": values.norm_span,
        "data.dir": Path(values.data_dir).resolve(),
        "optimizer.learning_rate": values.rate,
        "init_from": Path(values.init_from).resolve() if values.init_from else "",
    }
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        arguments = ["--config=configs/shapes.py", f"--workdir={workdir}"]
        arguments += [f"--config.{name}={value}" for name, value in fields.items()]
        run(processes, devices, arguments, values.limit)
        records = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    (ap,) = [record["mAP"] for record in records if record["kind"] == "eval"]
    return Curve(losses, ap)


def largest_relative_difference(losses: Sequence[float], reference: Sequence[float]) -> float:
    """Returns the largest |a − b| / |b| over the steps of two curves of the same length."""
    return max(abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True))


def define_flags() -> flags.FlagValues:
    """Returns the flags."""
    values = flags.FlagValues()
    flags.DEFINE_string(
        "data_dir", "data", "Folder of the prepared shapes; made if missing.", flag_values=values
    )
    flags.DEFINE_list(
        "layouts",
        ["1x1", "1x8", "2x4", "4x2"],
        "PROCESSESxDEVICES; the first is the reference.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "parallel", ["shard_map", "pmap"], "Values of config.parallel.", flag_values=values
    )
    flags.DEFINE_string(
        "init_from", "", "A run to start from: config.init_from.", flag_values=values
    )
    flags.DEFINE_float("rate", 1e-5, "config.optimizer.learning_rate.", flag_values=values)
    flags.DEFINE_integer("norm_span", 0, "config.model.norm_span.", flag_values=values)
    flags.DEFINE_integer("limit", 600, "Time limit of one run in seconds.", flag_values=values)
    flags.DEFINE_string(
        "json", None, "Also write losses and AP to this file, after every run.", flag_values=values
    )
    return values


def main(argv: Sequence[str]) -> None:
    """Parses the command line, runs all layouts and prints a row after each."""
    values = cli.parse_flags(argv, define_flags())
    layouts = [parse_layout(text) for text in values.layouts]
    curves: dict[str, Curve] = {}
    print("| layout | loss, first and last | largest relative difference | mAP | difference |")
    print("|---|---|---|---|---|", flush=True)
    for parallel in values.parallel:
        for processes, devices in layouts:
            name = f"{processes} x {devices}, {parallel}"
            curve = curves[name] = measure(processes, devices, parallel, values)
            reference = next(iter(curves.values()))
            loss = largest_relative_difference(curve.losses, reference.losses)
            print(
                f"| {name} | {curve.losses[0]:.4f}, {curve.losses[-1]:.4f} | {loss:.1e} "
                f"| {curve.ap:.5f} | {abs(curve.ap - reference.ap):.1e} |",
                flush=True,
            )
            if values.json:
                write_json(values.json, curves, "--json")


if __name__ == "__main__":
    cli.run(main)
