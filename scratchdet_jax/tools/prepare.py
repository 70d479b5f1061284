"""Prepares data sets: python -m scratchdet_jax.tools.prepare {voc,shapes} [options].

``voc`` checks a folder in VOC layout and prepares it as voc_folder/NAME; ``shapes`` makes the
embedded data set (which training does by itself at first use).
"""

import argparse
import sys
from collections.abc import Sequence

from scratchdet_jax.data.builders.shapes import prepare_shapes
from scratchdet_jax.data.builders.voc_folder import dataset_name, prepare_voc_folder
from scratchdet_jax.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scratchdet_jax.tools.prepare", description="Prepares a data set."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    voc = commands.add_parser("voc", help="a folder in VOC layout, as voc_folder/NAME")
    voc.add_argument("--folder", required=True, help="holds JPEGImages, Annotations, ImageSets")
    voc.add_argument("--name", help="of the data set (default: the folder's name)")
    voc.add_argument(
        "--classes", metavar="A,B,…", type=_names,
        help="class names in the order of their labels; others are left out (default: all found)",
    )  # fmt: skip
    voc.add_argument(
        "--splits", metavar="A,B,…", type=_names,
        help="lists of ImageSets/Main to prepare (default: all that are plain lists of ids)",
    )  # fmt: skip
    voc.set_defaults(run=_voc)
    shapes = commands.add_parser("shapes", help="the embedded data set of procedural scenes")
    shapes.set_defaults(run=lambda arguments: prepare_shapes(arguments.data_dir))
    for command in (voc, shapes):
        command.add_argument(
            "--data_dir", default="data", help="where data sets are kept (default: %(default)s)"
        )
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _voc(arguments: argparse.Namespace) -> None:
    name = arguments.name or dataset_name(arguments.folder)
    report = prepare_voc_folder(
        arguments.folder, arguments.data_dir, name, arguments.classes, arguments.splits
    )
    print(f"use it as voc_folder/{name}:SPLIT, SPLIT being one of {', '.join(report.images)}")


if __name__ == "__main__":
    sys.exit(main())
