"""Checks a data set and prepares it for training.

python -m scratchdet_jax.tools.prepare {voc,coco,shapes} [options]

`voc` prepares a folder in VOC layout as voc_folder/NAME. `coco` prepares COCO annotation files and
their images as coco_folder/NAME. `shapes` makes the embedded data set, as training does at its
first use. After an interruption, the same command resumes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scratchdet_jax import cli, stopping
from scratchdet_jax.data.builders.coco_folder import CocoSplit, prepare_coco_folder
from scratchdet_jax.data.builders.report import PrepareReport
from scratchdet_jax.data.builders.shapes import prepare_shapes
from scratchdet_jax.data.builders.voc_folder import dataset_name, prepare_voc_folder

_COCO_EXAMPLE = """example:
  %(prog)s --name=coco2017 \\
      --split=train:annotations/instances_train2017.json:train2017 \\
      --split=validation:annotations/instances_val2017.json:val2017
"""


def main(argv: Sequence[str]) -> None:
    """Parses the command line and prepares."""
    options = _parser(argv[0]).parse_args(argv[1:])
    stopping.resumable()
    options.run(options)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    voc = commands.add_parser("voc", help="a folder in VOC layout, as voc_folder/NAME")
    voc.add_argument("--folder", required=True, help="holds JPEGImages, Annotations, ImageSets")
    voc.add_argument("--name", help="name of the data set (default: the folder's name)")
    voc.add_argument(
        "--classes",
        metavar="A,B,…",
        type=_names,
        help="class names in the order of their labels; other objects are skipped (default: all "
        "classes found)",
    )
    voc.add_argument(
        "--splits",
        metavar="A,B,…",
        type=_names,
        help="lists in ImageSets/Main to prepare (default: all that are plain lists of ids)",
    )
    voc.set_defaults(run=_voc)
    coco = commands.add_parser(
        "coco",
        help="COCO annotations and images, as coco_folder/NAME",
        epilog=_COCO_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    coco.add_argument(
        "--split",
        metavar="NAME:FILE.json:FOLDER",
        type=_coco_split,
        action="append",
        required=True,
        dest="splits",
        help="a split, its annotation file and the folder of its images; once per split",
    )
    coco.add_argument("--name", required=True, help="name of the data set")
    coco.set_defaults(run=_coco)
    shapes = commands.add_parser("shapes", help="the embedded data set of procedural scenes")
    shapes.set_defaults(run=lambda options: prepare_shapes(options.data_dir))
    for command in (voc, coco):
        command.add_argument(
            "--strict",
            action="store_true",
            help="treat every defect as an error: exit with status 1 and write no data set",
        )
    for command in (voc, coco, shapes):
        command.add_argument(
            "--data_dir", default="data", help="folder of the data sets (default: %(default)s)"
        )
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _coco_split(text: str) -> CocoSplit:
    name, annotations, images = (*text.split(":"), "", "")[:3]
    if text.count(":") != 2 or not (name and annotations and images):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME:FILE.json:FOLDER, such as train:instances_train.json:train2017"
        )
    return CocoSplit(name, Path(annotations), Path(images))


def _voc(options: argparse.Namespace) -> None:
    name = options.name or dataset_name(options.folder)
    _print_use(
        prepare_voc_folder(
            options.folder, options.data_dir, name, options.classes, options.splits, options.strict
        )
    )


def _coco(options: argparse.Namespace) -> None:
    _print_use(prepare_coco_folder(options.splits, options.data_dir, options.name, options.strict))


def _print_use(report: PrepareReport) -> None:
    print(f"use it as {report.name}:SPLIT, SPLIT being one of {', '.join(report.images)}")


if __name__ == "__main__":
    cli.run(main)
