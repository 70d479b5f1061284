"""Tests the paper's thesis on small detectors trained from scratch on the shapes data set.

python -m experiments.thesis --output=runs/thesis           # 39 runs, three seeds
python -m experiments.thesis --output=runs/thesis --quick   # 13 runs, one seed

Compares, in VGG-16, BatchNorm nowhere, in the head, in the backbone and in both, each at a low and
a high learning rate; and in ResNet-18 the root block with a 7×7 convolution, with and without
down-sampling. The same command resumes a stopped experiment; finished runs are not repeated.
Writes table.md, results.json and figure.png, and reports for each ordering of the paper whether it
holds.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import ml_collections

from experiments.thesis.plan import IMAGES, RATES, SEEDS, Row, rows, run_config, run_folder
from experiments.thesis.report import Outcome, Outcomes, read_outcome, write_report
from scratchdet_jax import cli, stopping
from scratchdet_jax.config import defaults
from scratchdet_jax.config.fields import WITHOUT_EFFECT, flatten, number_of_steps
from scratchdet_jax.errors import UserError, writable_folder
from scratchdet_jax.files import write_text_atomically
from scratchdet_jax.training.loop import train_and_evaluate

_RECORD = "run.json"  # in the folder of a run: its config


def train_row(row: Row, seed: int, images: int, output: Path, data_dir: str) -> Outcome:
    """Trains one run to its end; resumes a stopped one, and only reads a finished one.

    Raises:
        UserError: the folder holds another run, or training failed other than by diverging.
    """
    config = run_config(row, seed, images, data_dir)
    workdir, steps = run_folder(output, row, seed), number_of_steps(config)
    _claim(workdir, config)
    outcome = read_outcome(workdir, steps)
    if outcome is not None:
        return outcome
    try:
        train_and_evaluate(config, workdir)
    except UserError as error:
        outcome = read_outcome(workdir, steps)
        if outcome is None or outcome.diverged_at is None:
            raise
        print(f"a diverged run is a result too: {error}")
    finally:
        jax.clear_caches()  # the programs of dozens of runs would fill the memory
        gc.collect()
    return outcome or read_outcome(workdir, steps)


def _claim(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Records the config of the run in its folder; refuses the folder of another run."""
    fields = {name: value for name, value in flatten(config).items() if name not in WITHOUT_EFFECT}
    fields = json.loads(json.dumps(fields))  # tuples become lists
    path = writable_folder(workdir, "--output") / _RECORD
    if not path.exists():
        write_text_atomically(path, json.dumps(fields, indent=2) + "\n")
        return
    # A run that is older than a field was trained as with the field's default.
    known = json.loads(json.dumps(flatten(defaults.get_config())))
    saved = known | json.loads(path.read_text(encoding="utf-8"))
    for name, value in fields.items():
        if saved[name] != value:
            raise UserError(
                f"{workdir} holds a run with config.{name} = {saved[name]}, not {value}: "
                "choose another --output, or delete that run"
            )


def run_all(seeds: Sequence[int], images: int, output: Path, data_dir: str) -> str:
    """Trains every row with every seed, seed by seed, and writes the report after each run."""
    writable_folder(output, "--output")
    plan = [(row, seed) for seed in seeds for row in rows()]
    outcomes: Outcomes = {}
    spent: list[float] = []  # seconds of each run trained now
    text = ""
    for done, (row, seed) in enumerate(plan):
        finished = _is_finished(row, seed, images, output, data_dir)
        left = statistics.fmean(spent) * (len(plan) - done) / 60 if spent else None
        remaining = "" if left is None else f"; about {left:.0f} min left"
        state = "already finished" if finished else f"{row.rate} rate {RATES[row.rate]:g}"
        print(
            f"\n[{done + 1}/{len(plan)}] {row.title}, seed {seed}, {state}{remaining}", flush=True
        )
        start = time.perf_counter()
        outcomes.setdefault(row.key, {})[seed] = train_row(row, seed, images, output, data_dir)
        if not finished:
            spent.append(time.perf_counter() - start)
        text = write_report(outcomes, images, output)
    return text


def _is_finished(row: Row, seed: int, images: int, output: Path, data_dir: str) -> bool:
    steps = number_of_steps(run_config(row, seed, images, data_dir))
    return read_outcome(run_folder(output, row, seed), steps) is not None


def main(argv: Sequence[str]) -> None:
    """Parses the command line, trains and reports."""
    parser = argparse.ArgumentParser(
        prog=argv[0], description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, help="folder of the runs and the report")
    parser.add_argument("--quick", action="store_true", help="only the first seed")
    parser.add_argument(
        "--seeds", type=int, nargs="+", help=f"default: {SEEDS}, quick: {SEEDS[:1]}"
    )
    parser.add_argument(
        "--images", type=int, default=IMAGES, help=f"training images per run (default {IMAGES})"
    )
    parser.add_argument("--data_dir", default="data", help="folder of the shapes data set")
    options = parser.parse_args(argv[1:])
    seeds = options.seeds or (SEEDS[:1] if options.quick else SEEDS)
    stopping.resumable(terminable=True)
    text = run_all(seeds, options.images, Path(options.output), options.data_dir)
    print(f"\n{text}\ntable.md, results.json and figure.png are in {options.output}")


if __name__ == "__main__":
    cli.run(main)
