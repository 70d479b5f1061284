"""Draws the curves of runs from their metrics.jsonl.

scratchdet plot RUN [RUN …] --output=curves.png

The first row is the paper's figure: loss, L2 norm of the gradient, fluctuation of that norm.
Curves are named by the runs' folders.
"""

import argparse
from collections.abc import Sequence

from scratchdet_jax import cli
from scratchdet_jax.paths import user_path
from scratchdet_jax.reports.curves import draw_runs, read_run, run_names, save


def parser(program: str) -> argparse.ArgumentParser:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Draws the curves of runs from their metrics.jsonl: loss, gradient norm and "
        "its fluctuation, then parts, AP, learning rate and throughput.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--output", required=True, type=user_path, help="picture to write, such as curves.png"
    )
    return parser


def main(argv: Sequence[str]) -> None:
    """Parses the command line and draws."""
    options = parser(argv[0]).parse_args(argv[1:])
    runs = list(map(read_run, options.runs, run_names(options.runs)))
    save(draw_runs(runs), options.output)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    cli.run(main)
