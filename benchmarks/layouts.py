"""One run in several layouts: python benchmarks/layouts.py --data_dir=data --layouts=1x1,2x4.

Trains the detector of `make demo` on `shapes` for 30 steps in float32 and scores it, as
PROCESSESxDEVICES real processes of so many CPU devices each on this machine, and prints how far
losses and AP are from those of the first layout. `--init_from=runs/shapes` begins with what
`make demo` has trained, so that there is an AP to compare; a fresh detector amplifies any
rounding tenfold a step at a recipe's rate (docs/results.md).
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

sys.path.insert(0, str(Path(__file__).parent.parent))

from absl import flags

from scratchdet_jax import cli
from scratchdet_jax.errors import UserError

ROOT = Path(__file__).parent.parent
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
    """What a run has logged: the loss of each step, and the final mAP."""

    losses: list[float]
    ap: float


def parse_layout(text: str) -> tuple[int, int]:
    """Processes and devices of each from "2x4"; UserError if it is none."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise UserError(f"--layouts has {text!r}: write PROCESSESxDEVICES, such as 2x4")
    return int(match[1]), int(match[2])


def run(processes: int, devices: int, arguments: Sequence[str], limit: float) -> None:
    """Runs train.py as several processes; UserError with its last words if one fails."""
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
            raise UserError(f"a run ended with {codes}: {output.read()[-2000:]}")


def measure(processes: int, devices: int, parallel: str, values: flags.FlagValues) -> Curve:
    """Trains and scores in one layout, in a folder of its own."""
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
    """The largest |a − b| / |b| over the steps of two curves of the same length."""
    return max(abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True))


def define_flags() -> None:
    """The flags of this program; only where it is run, as others have some of the same names."""
    flags.DEFINE_string("data_dir", "data", "Where the prepared shapes lie, or are to be made.")
    flags.DEFINE_list(
        "layouts", ["1x1", "1x8", "2x4", "4x2"], "PROCESSESxDEVICES; the first is asked."
    )
    flags.DEFINE_list("parallel", ["shard_map", "pmap"], "Values of config.parallel.")
    flags.DEFINE_string("init_from", "", "A run whose weights to begin with, as config.init_from.")
    flags.DEFINE_float("rate", 1e-5, "The learning rate, as config.optimizer.learning_rate.")
    flags.DEFINE_integer("norm_span", 0, "config.model.norm_span of all.")
    flags.DEFINE_integer("limit", 600, "Seconds that one run may take.")
    flags.DEFINE_string("json", None, "Also write losses and AP to this file, after every run.")


def main(argv: Sequence[str]) -> None:
    """Parses the command line, runs all layouts and prints the table as they end."""
    values = cli.parse_flags(argv)
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
                Path(values.json).write_text(json.dumps(curves, indent=1) + "\n")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
