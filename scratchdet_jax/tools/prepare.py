"""Prepares data sets: python -m scratchdet_jax.tools.prepare {voc,coco,shapes} [options].

`voc` checks a folder of images and VOC annotations and prepares it as voc_folder/NAME; `coco` does
so with COCO annotation files and their images, as coco_folder/NAME; `shapes` makes the embedded
data set (which training does by itself at first use). A run that was killed is taken up by the same
command.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scratchdet_jax.data.builders.coco_folder import CocoSplit, prepare_coco_folder
from scratchdet_jax.data.builders.shapes import prepare_shapes
from scratchdet_jax.data.builders.voc_folder import dataset_name, prepare_voc_folder
from scratchdet_jax.errors import UserError

_COCO_EXAMPLE = """example:
  python -m scratchdet_jax.tools.prepare coco --name=coco2017 \\
      --split=train:annotations/instances_train2017.json:train2017 \\
      --split=validation:annotations/instances_val2017.json:val2017
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scratchdet_jax.tools.prepare", description="Prepares a data set."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    voc = commands.add_parser("voc", help="images and VOC's XML files, as voc_folder/NAME")
    voc.add_argument(
        "--folder",
        required=True,
        help="has JPEGImages, Annotations and ImageSets/Main, or images/ and annotations/, or each "
        "image beside its .xml file, in one folder or in train/, valid/, test/",
    )
    voc.add_argument(
        "--images",
        metavar="FOLDER",
        help="folder of the images in --folder, if it is called otherwise; it may be a link",
    )
    voc.add_argument(
        "--annotations",
        metavar="FOLDER",
        help="folder of the .xml files in --folder, if it is called otherwise; it may be a link",
    )
    voc.add_argument("--name", help="of the data set (default: the folder's name)")
    voc.add_argument(
        "--classes",
        metavar="A,B,…",
        type=_names,
        help="class names in the order of their labels; others are left out (default: all found)",
    )
    voc.add_argument(
        "--splits",
        metavar="A,B,…",
        type=_names,
        help="splits to prepare: lists of ImageSets/Main, or folders (default: all)",
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
        help="a split, its annotation file and the folder of its images; once for every split",
    )
    coco.add_argument("--name", required=True, help="of the data set")
    coco.set_defaults(run=_coco)
    shapes = commands.add_parser("shapes", help="the embedded data set of procedural scenes")
    shapes.set_defaults(run=lambda arguments: prepare_shapes(arguments.data_dir))
    for command in (voc, coco):
        command.add_argument(
            "--strict",
            action="store_true",
            help="take any defect for an error: exit with status 1 and write no data set",
        )
    for command in (voc, coco, shapes):
        command.add_argument(
            "--data_dir", default="data", help="where data sets are kept (default: %(default)s)"
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


def _voc(arguments: argparse.Namespace) -> None:
    name = arguments.name or dataset_name(arguments.folder)
    report = prepare_voc_folder(
        arguments.folder,
        arguments.data_dir,
        name,
        arguments.classes,
        arguments.splits,
        arguments.strict,
        arguments.images,
        arguments.annotations,
    )
    print(f"use it as {report.name}:SPLIT, SPLIT being one of {', '.join(report.images)}")


def _coco(arguments: argparse.Namespace) -> None:
    report = prepare_coco_folder(
        arguments.splits, arguments.data_dir, arguments.name, arguments.strict
    )
    print(f"use it as {report.name}:SPLIT, SPLIT being one of {', '.join(report.images)}")


if __name__ == "__main__":
    sys.exit(main())
