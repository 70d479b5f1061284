"""Tests the paper's thesis on small detectors trained from scratch.

python -m experiments.thesis --output=runs/thesis                       # shapes: 45 runs, 5 seeds
python -m experiments.thesis --output=runs/thesis --quick               # one seed
python -m experiments.thesis --output=runs/thesis_bccd --photos=BCCD    # 8 runs, 2 seeds

On the shapes data set it compares, in VGG-16, BatchNorm nowhere, in the head, in the backbone and
in both, and in ResNet-18 the root block with a 7×7 convolution, with and without down-sampling. On
photos with VOC annotations and the lists train, val and test, it compares the places of BatchNorm.
--choose instead trains without BatchNorm at several learning rates, with a seed of its own; the
rates in plan.py are its results.

The same command resumes a stopped experiment; finished runs are not repeated. Two processes can
share the work if they are given different --seeds. Writes table.md, results.json and figure.png,
and reports for each ordering of the paper whether it holds.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections

from experiments.thesis import plan
from experiments.thesis.plan import Row, Study, run_config, run_folder
from experiments.thesis.report import Outcome, Outcomes, choice_table, read_outcome, write_report
from scratchdet_jax import cli, stopping
from scratchdet_jax.config import defaults
from scratchdet_jax.config.defaults import WITHOUT_EFFECT, flatten, number_of_steps
from scratchdet_jax.errors import UserError
from scratchdet_jax.files import writable_folder, write_text_atomically
from scratchdet_jax.paths import user_path
from scratchdet_jax.training.loop import train_and_evaluate

_RECORD = "run.json"  # in the folder of a run: its config


class Runs(NamedTuple):
    """How the rows of a study are trained.

    Attributes:
        study: the study.
        images: the training images of a run.
        output: the folder of the runs.
        choosing: whether the runs choose a learning rate.
    """

    study: Study
    images: int
    output: Path
    choosing: bool = False

    def config(self, row: Row, seed: int) -> ml_collections.ConfigDict:
        """Returns the config of a run."""
        return run_config(self.study, row, seed, self.images, self.choosing)

    def outcome(self, row: Row, seed: int) -> Outcome | None:
        """Returns the result of a run; None if it is not finished."""
        steps = number_of_steps(self.config(row, seed))
        return read_outcome(run_folder(self.output, row.key, seed), steps, self.study.plateau)


def train_row(runs: Runs, row: Row, seed: int) -> Outcome:
    """Trains one run to its end; resumes a stopped one, and only reads a finished one.

    Raises:
        UserError: the folder holds another run, or training failed other than by diverging.
    """
    config, workdir = runs.config(row, seed), run_folder(runs.output, row.key, seed)
    _claim(workdir, config)
    outcome = runs.outcome(row, seed)
    if outcome is not None:
        return outcome
    try:
        train_and_evaluate(config, workdir)
    except UserError as error:
        outcome = runs.outcome(row, seed)
        if outcome is None or outcome.diverged_at is None:
            raise
        print(f"a diverged run is a result too: {error}")
    finally:
        jax.clear_caches()  # the programs of dozens of runs would fill the memory
        gc.collect()
    return outcome or runs.outcome(row, seed)


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


def run_all(runs: Runs, rows: Sequence[Row], seeds: Sequence[int]) -> Iterator[Outcomes]:
    """Trains every row with every seed, seed by seed; yields the results after each run."""
    todo = [(row, seed) for seed in seeds for row in rows]
    outcomes: Outcomes = {}
    spent: list[float] = []  # seconds of each run trained now
    for done, (row, seed) in enumerate(todo):
        finished = runs.outcome(row, seed) is not None
        left = statistics.fmean(spent) * (len(todo) - done) / 60 if spent else None
        remaining = "" if left is None else f"; about {left:.0f} min left"
        state = "already finished" if finished else f"rate {row.rate:g}"
        print(
            f"\n[{done + 1}/{len(todo)}] {row.title}, seed {seed}, {state}{remaining}", flush=True
        )
        start = time.perf_counter()
        outcomes.setdefault(row.key, {})[seed] = train_row(runs, row, seed)
        if not finished:
            spent.append(time.perf_counter() - start)
        yield outcomes


def parser(program: str) -> argparse.ArgumentParser:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, help="folder of the runs and the report")
    parser.add_argument("--photos", help="folder of photos with VOC annotations, instead of shapes")
    parser.add_argument("--choose", action="store_true", help="choose the rate without BN")
    parser.add_argument("--quick", action="store_true", help="only the first seed")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: the study's")
    parser.add_argument("--images", type=int, help="training images per run")
    parser.add_argument("--data_dir", default="data", help="folder of the prepared data sets")
    return parser


def main(argv: Sequence[str]) -> None:
    """Parses the command line, trains and reports."""
    options = parser(argv[0]).parse_args(argv[1:])
    study = (
        plan.photo_study(options.data_dir, options.photos)
        if options.photos
        else plan.shapes_study(options.data_dir)
    )
    output = writable_folder(user_path(options.output), "--output")
    images = options.images or study.images
    stopping.resumable(terminable=True)
    if options.choose:
        runs = Runs(study, images, output / "choice", choosing=True)
        for outcomes in run_all(runs, study.candidates, (plan.CHOICE_SEED,)):
            text = choice_table(study, outcomes)
        print(f"\n{text}")
        return
    runs = Runs(study, images, output)
    seeds = options.seeds or (study.seeds[:1] if options.quick else study.seeds)
    for outcomes in run_all(runs, study.rows(), seeds):
        text = write_report(study, outcomes, images, output)
    print(f"\n{text}\ntable.md, results.json and figure.png are in {options.output}")


if __name__ == "__main__":
    cli.run(main)
