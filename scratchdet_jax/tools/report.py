"""Reports on a trained run, or compares several, on one page.

scratchdet report RUN [RUN …] --output=report.html

RUN is WORKDIR or WORKDIR@CHECKPOINT; a checkpoint is "best" (the default), "latest" or a step. Each
run is evaluated once on its eval split. The page needs no other file and no network.
"""

import argparse
import json
import time
from collections.abc import Sequence

from scratchdet_jax import cli
from scratchdet_jax.errors import UserError
from scratchdet_jax.files import absolute
from scratchdet_jax.paths import user_path
from scratchdet_jax.reports.page.output import write_output

MARK = "scratchdet report"
"""What the page and the JSON file hold near their beginning."""


def main(argv: Sequence[str]) -> None:
    """Parses the command line, evaluates the runs, prints the figures and writes the page."""
    started = time.perf_counter()
    options = parser(argv[0]).parse_args(argv[1:])
    for flag in ("output", "json"):
        if path := getattr(options, flag):
            write_output(path, f"--{flag}", MARK, options.overwrite)  # only checks
    if not 0 <= options.threshold <= 1:
        raise UserError(f"--threshold is {options.threshold}: give a score from 0 to 1")
    if options.json and absolute(options.json) == absolute(options.output):
        raise UserError("--json and --output name the same file: choose two")
    from scratchdet_jax.reports.report.report import RunsReport  # JAX: slow
    from scratchdet_jax.reports.report.study import open_runs

    runs = open_runs(options.runs, options.split, options.data_dir)
    report = RunsReport(runs, options.threshold, options.images)
    print(report.to_text(), flush=True)
    if options.json:
        figures = {"generator": MARK, **report.to_dict()}
        text = json.dumps(figures, indent=1) + "\n"
        write_output(options.json, "--json", MARK, options.overwrite, text)
    page = report.to_html(time.perf_counter() - started, MARK)
    write_output(options.output, "--output", MARK, options.overwrite, page)
    print(f"page: {options.output}")


def parser(program: str) -> argparse.ArgumentParser:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(
        prog=program,
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="WORKDIR or WORKDIR@CHECKPOINT")
    add("--output", required=True, type=user_path, metavar="FILE.html", help="the page to write")
    add("--json", type=user_path, metavar="FILE", help="write the figures as JSON")
    add("--overwrite", action="store_true", help="replace files of other commands")
    add("--split", help="NAME:SPLIT, or a split of the run's folder (default: its eval split)")
    add("--data_dir", help="directory of the prepared data sets (default: the run's)")
    add(
        "--threshold",
        type=float,
        default=0.5,
        help="lowest score of a detection in the confusion matrix and the pictures (default: 0.5)",
    )
    add(
        "--images",
        type=cli.whole_number(0),
        default=6,
        help="number of the worst and of the best images shown (default: 6 each)",
    )
    return parser


if __name__ == "__main__":
    cli.run(main)
