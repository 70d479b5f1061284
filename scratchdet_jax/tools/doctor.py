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

import ml_collections
from absl import flags

from scratchdet_jax import cli
from scratchdet_jax.config import defaults
from scratchdet_jax.config.validation import validate
from scratchdet_jax.errors import UserError
from scratchdet_jax.paths import user_path
from scratchdet_jax.reports.doctor.anchors import better_sizes, recipe_text
from scratchdet_jax.reports.doctor.report import MARK, DataSetReport
from scratchdet_jax.reports.doctor.study import DataSetStudy
from scratchdet_jax.reports.page.output import write_output


def main(argv: Sequence[str]) -> None:
    """Parses the command line, examines the data set, prints and writes the report."""
    started = time.perf_counter()
    options, config = _parse(argv)
    validate(config, device_count=1)
    recipe = options.write_anchors
    if recipe and recipe.suffix != ".py":
        raise UserError(f"--write_anchors {recipe} is no recipe: give a file FILE.py")

    def write(flag: str, text: str | None = None) -> None:
        if path := getattr(options, flag):
            # Recipes have no mark, because they are meant to be edited.
            mark = "" if flag == "write_anchors" else MARK
            write_output(path, f"--{flag}", mark, options.overwrite, text)

    for flag in ("html", "json", "write_anchors"):
        write(flag)  # only checks: fails now rather than after minutes
    page, data_dir = None, options.data_dir or config.data.dir
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about skipped boxes, which the report lists
        report = DataSetReport(DataSetStudy(options.dataset, data_dir, config, options.images))
        if options.html:
            page = report.to_html(options.samples, started)
    seconds = time.perf_counter() - started
    print(report.to_text(seconds))
    if page:
        write("html", page)
        print(f"page: {options.html}")
    if recipe and (advice := better_sizes(report.figures)):
        examined = options.config or ""
        text = recipe_text(recipe, advice, options.dataset, examined, config)
        write("write_anchors", text)
        print(f"anchors: {recipe}, for train.py --config={recipe}")
    elif recipe:
        print(f"no other anchor sizes clearly help: {recipe} was not written")
    if options.json:
        write("json", json.dumps(report.to_dict(seconds), indent=1) + "\n")


def parser(program: str) -> argparse.ArgumentParser:
    """Returns the options of the command line, without the overrides."""
    parser = argparse.ArgumentParser(
        prog=program,
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "dataset",
        metavar="DATASET",
        help="NAME[/CONFIG] for all splits, or NAME[/CONFIG]:SPLIT[,…] as in config.data.train",
    )
    add("--data_dir", help="directory of the prepared data sets (default: the recipe's)")
    add("--config", metavar="FILE", help="recipe (default: configs/voc300.py)")
    add("--html", type=user_path, metavar="FILE", help="write the report as a page with pictures")
    add("--json", type=user_path, metavar="FILE", help="write the numbers as JSON")
    add("--overwrite", action="store_true", help="replace files that this command did not write")
    add(
        "--write_anchors",
        type=user_path,
        metavar="FILE.py",
        help="write a recipe with the anchor sizes that are advised, if others would clearly help",
    )
    add(
        "--samples",
        type=cli.whole_number(0),
        default=24,
        help="augmented samples on the page (default: 24)",
    )
    add(
        "--images",
        type=cli.whole_number(0),
        default=20_000,
        help="decode at most this many images, drawn at random (default: 20000)",
    )
    return parser


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, ml_collections.ConfigDict]:
    """Returns the options and the config."""
    options, rest = parser(argv[0]).parse_known_args(argv[1:])
    if options.config:
        rest = [f"--config={options.config}", *rest]
    default = defaults.get_config()
    default.name = "voc300"  # the defaults equal that recipe
    return options, cli.parse_config([argv[0], *rest], flags.FlagValues(), default)


if __name__ == "__main__":
    cli.run(main)
