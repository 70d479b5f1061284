"""Examines a data set before training: python -m scratchdet_jax.tools.doctor DATASET [options].

The report is printed; --html writes it as one page with pictures. The recipe gives anchors, image
size, canvas and augmentation, and any field of it can be overridden, as
--config.anchors.min_percent="(5,12,28,44,60,76)".
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import ml_collections

from scratchdet_jax import cli
from scratchdet_jax.config import defaults
from scratchdet_jax.config.validation import validate
from scratchdet_jax.errors import UserError
from scratchdet_jax.tools.doctor.opening import open_dataset
from scratchdet_jax.tools.doctor.report import Report
from scratchdet_jax.tools.doctor.study import Study


def main(argv: Sequence[str]) -> None:
    """Parses the command line, examines, prints and writes."""
    started = time.perf_counter()
    options, config = _parse(argv)
    validate(config, device_count=1)
    for flag in ("html", "json"):
        if path := getattr(options, flag):
            _write(Path(path), "", flag)  # better now than after minutes
    opened = open_dataset(options.dataset, options.data_dir or config.data.dir)
    page = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of boxes left out, which the report lists
        study = Study(options.dataset, opened, config, options.images)
        report = Report.measure(study)
        if options.html:
            page = report.to_html(study, options.samples, lambda: time.perf_counter() - started)
    seconds = time.perf_counter() - started
    print(report.to_text(study, seconds))
    if page:
        _write(Path(options.html), page, "html")
        print(f"page: {options.html}")
    if options.json:
        figures = report.to_dict(study, seconds)
        _write(Path(options.json), json.dumps(figures, indent=1) + "\n", "json")


def _write(path: Path, text: str, flag: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(
            f"--{flag}={path} cannot be written ({error.strerror}): choose another place"
        ) from None


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, ml_collections.ConfigDict]:
    parser = argparse.ArgumentParser(
        prog="python -m scratchdet_jax.tools.doctor",
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        help="NAME[/CONFIG], with all its splits, or NAME[/CONFIG]:SPLIT[,…], as config.data.train",
    )
    parser.add_argument("--data_dir", help="where prepared data sets lie (default: the recipe's)")
    parser.add_argument("--config", metavar="FILE", help="recipe (default: configs/voc300.py)")
    parser.add_argument("--html", metavar="FILE", help="write the report as a page with pictures")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON")
    parser.add_argument(
        "--samples", type=_whole, default=24, help="augmented samples on the page (default: 24)"
    )
    parser.add_argument(
        "--images",
        type=_whole,
        default=20_000,
        help="decode at most so many images, drawn at random (default: 20000)",
    )
    options, rest = parser.parse_known_args(argv[1:])
    if options.config:
        rest = [f"--config={options.config}", *rest]
    default = defaults.get_config()
    default.name = "voc300"  # the defaults are that recipe
    return options, cli.parse_config([argv[0], *rest], default)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number")
    return int(text)


if __name__ == "__main__":
    cli.run(main, sys.argv)
