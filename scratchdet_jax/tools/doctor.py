"""Examines a data set before training.

scratchdet doctor DATASET [options]

The report is printed; --html writes it as one page with pictures. The recipe defines anchors, image
size, canvas and augmentation; any of its fields can be overridden, for example
--config.anchors.min_percent="(5,12,28,44,60,76)".
"""

import argparse
import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import ml_collections
from absl import flags

from scratchdet_jax import cli
from scratchdet_jax.config import defaults
from scratchdet_jax.config.recipes import load_recipe
from scratchdet_jax.config.validation import validate
from scratchdet_jax.errors import UserError
from scratchdet_jax.reports.doctor.opening import open_dataset
from scratchdet_jax.reports.doctor.recipe_file import check_recipe, write_recipe
from scratchdet_jax.reports.doctor.report import DataSetReport
from scratchdet_jax.reports.doctor.sections.unreached import WhatIf
from scratchdet_jax.reports.doctor.study import DataSetStudy


def main(argv: Sequence[str]) -> None:
    """Parses the command line, examines the data set, prints and writes the report."""
    started = time.perf_counter()
    options, config, original = _parse(argv)
    validate(config, device_count=1)
    for flag in ("html", "json"):
        if path := getattr(options, flag):
            _write(Path(path), "", flag)  # fail now rather than after minutes
    if options.write_anchors:
        check_recipe(options.write_anchors, options.overwrite)
    opened = open_dataset(options.dataset, options.data_dir or config.data.dir)
    page = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about skipped boxes, which the report lists
        study = DataSetStudy(options.dataset, opened, config, options.images)
        report = DataSetReport.measure(study)
        if options.html:
            page = report.to_html(study, options.samples, lambda: time.perf_counter() - started)
    seconds = time.perf_counter() - started
    print(report.to_text(study, seconds))
    if page:
        _write(Path(options.html), page, "html")
        print(f"page: {options.html}")
    if options.write_anchors:
        print(_write_anchors(options, report.unreached.better_sizes(study), original, config))
    if options.json:
        figures = report.to_dict(study, seconds)
        _write(Path(options.json), json.dumps(figures, indent=1) + "\n", "json")


def _write_anchors(
    options: argparse.Namespace,
    advice: WhatIf | None,
    original: ml_collections.ConfigDict,
    config: ml_collections.ConfigDict,
) -> str:
    path = options.write_anchors
    if advice is None:
        return f"no other anchor sizes clearly help: {path} was not written"
    write_recipe(
        path,
        advice,
        dataset=options.dataset,
        recipe=options.config or "",
        original=original,
        config=config,
    )
    return f"anchors: {path}, for train.py --config={path}"


def _write(path: Path, text: str, flag: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(
            f"--{flag}={path} cannot be written ({error.strerror}): choose another path"
        ) from None


def parser(program: str) -> argparse.ArgumentParser:
    """The options of the command line, without the overrides."""
    parser = argparse.ArgumentParser(
        prog=program,
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        help="NAME[/CONFIG] for all splits, or NAME[/CONFIG]:SPLIT[,…] as in config.data.train",
    )
    parser.add_argument(
        "--data_dir", help="directory of the prepared data sets (default: the recipe's)"
    )
    parser.add_argument("--config", metavar="FILE", help="recipe (default: configs/voc300.py)")
    parser.add_argument("--html", metavar="FILE", help="write the report as a page with pictures")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the file of --write_anchors"
    )
    parser.add_argument(
        "--write_anchors",
        type=Path,
        metavar="FILE.py",
        help="write a recipe with the anchor sizes that are advised, if others would clearly help",
    )
    parser.add_argument(
        "--samples",
        type=cli.whole_number(0),
        default=24,
        help="augmented samples on the page (default: 24)",
    )
    parser.add_argument(
        "--images",
        type=cli.whole_number(0),
        default=20_000,
        help="decode at most this many images, drawn at random (default: 20000)",
    )
    return parser


def _parse(
    argv: Sequence[str],
) -> tuple[argparse.Namespace, ml_collections.ConfigDict, ml_collections.ConfigDict]:
    """The options, the config, and the config without the overrides."""
    options, rest = parser(argv[0]).parse_known_args(argv[1:])
    if options.config:
        rest = [f"--config={options.config}", *rest]
    default = defaults.get_config()
    default.name = "voc300"  # the defaults equal that recipe
    recipe = default.copy_and_resolve_references()
    config = cli.parse_config([argv[0], *rest], flags.FlagValues(), recipe)
    return options, config, load_recipe(options.config) if options.config else default


if __name__ == "__main__":
    cli.run(main)
