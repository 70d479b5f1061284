"""Checks a data set and prepares it for training.

scratchdet prepare {voc,coco,yolo,shapes} [options]

`voc` prepares images with VOC annotations as voc_folder/NAME, `coco` COCO annotation files and
their images as coco_folder/NAME, and `yolo` a data.yaml with its text labels as yolo_folder/NAME.
`shapes` makes the embedded data set, as training does at its first use. Classes can be chosen
(--classes, --drop, --rename), and a set with one split can be divided (--val, --test).
"""

import argparse
from collections.abc import Sequence
from typing import Any

from scratchdet_jax import cli
from scratchdet_jax.data.sources import dataset_name
from scratchdet_jax.datasets.choices import Choices
from scratchdet_jax.datasets.folders import (
    CocoSplit,
    prepare_coco_folder,
    prepare_voc_folder,
    prepare_yolo_folder,
)
from scratchdet_jax.datasets.report import PrepareReport
from scratchdet_jax.datasets.shapes import prepare_shapes
from scratchdet_jax.paths import local_path

_COCO_EXAMPLE = """example:
  %(prog)s --name=coco2017 \\
      --split=train:annotations/instances_train2017.json:train2017 \\
      --split=validation:annotations/instances_val2017.json:val2017
"""
_FOR_EVALUATION = {"val", "valid", "validation", "test"}  # nobody divides these
_YOLO_EXAMPLE = """example:
  %(prog)s --name=cells --data=cells/data.yaml --val=0.2
"""


def main(argv: Sequence[str]) -> None:
    """Parses the command line and prepares."""
    options = parser(argv[0]).parse_args(argv[1:])
    report = options.run(options)
    if report is None:
        return
    print(f"use it as {report.name}:SPLIT, SPLIT being one of {', '.join(report.images)}")
    if len(report.images) == 1 and not set(report.images) & _FOR_EVALUATION:
        print(
            "it has only one split: divide it with --val=0.2 --force, or train without evaluation, "
            "with --config.data.eval="
        )


def parser(program: str) -> argparse.ArgumentParser:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    voc = commands.add_parser("voc", help="images and VOC's XML files, as voc_folder/NAME")
    voc.add_argument(
        "--folder",
        required=True,
        help="has JPEGImages, Annotations and ImageSets/Main, or images/ and annotations/, or each "
        "image beside its .xml file, in one folder or in train/, valid/, test/",
    )
    for flag, files in (("--images", "images"), ("--annotations", ".xml files")):
        voc.add_argument(
            flag,
            metavar="FOLDER",
            help=f"folder of the {files} in --folder, if it is called otherwise; it may be a link",
        )
    voc.add_argument(
        "--splits",
        metavar="A,B,…",
        type=_names,
        help="splits to prepare: lists of ImageSets/Main, or folders (default: all)",
    )
    voc.add_argument("--name", help="name of the data set (default: the folder's name)")
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
    yolo = commands.add_parser(
        "yolo",
        help="a data.yaml with images and text labels, as yolo_folder/NAME",
        description="A line of a label file is `class cx cy w h` or a polygon, whose bounding box\n"
        "is used. An image without a label file has no objects.",
        epilog=_YOLO_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    yolo.add_argument("--data", required=True, metavar="FILE.yaml", help="train, val, test, names")
    yolo.add_argument(
        "--folder", help="contains everything (default: `path` of FILE.yaml, or the file's folder)"
    )
    yolo.add_argument("--name", required=True, help="name of the data set")
    shapes = commands.add_parser("shapes", help="the embedded data set of procedural scenes")
    shapes.set_defaults(run=lambda options: prepare_shapes(options.data_dir))
    voc.set_defaults(run=_voc)
    coco.set_defaults(run=lambda options: prepare_coco_folder(options.splits, **_common(options)))
    yolo.set_defaults(
        run=lambda options: prepare_yolo_folder(
            options.data, folder=options.folder, **_common(options)
        )
    )
    for command in (voc, coco, yolo):
        _add_choices(command)
    for command in (voc, coco, yolo, shapes):
        command.add_argument(
            "--data_dir", default="data", help="folder of the data sets (default: %(default)s)"
        )
    return parser


def _add_choices(command: argparse.ArgumentParser) -> None:
    """Adds the options that all formats have."""
    command.add_argument(
        "--strict",
        action="store_true",
        help="treat every defect as an error: exit with status 1 and write no data set",
    )
    command.add_argument(
        "--force",
        "--overwrite",
        action="store_true",
        help="prepare again what exists; the old data set is kept until the new one is complete",
    )
    classes = command.add_argument_group("classes (the others refer to the names after --rename)")
    classes.add_argument(
        "--classes",
        metavar="A,B,…",
        type=_names,
        help="keep only these, in the order of their labels (default: all)",
    )
    classes.add_argument(
        "--rename",
        metavar="A=B",
        type=_pair,
        action="append",
        default=[],
        help="call the class A B; merges classes if B exists; once for every class",
    )
    classes.add_argument(
        "--drop", metavar="A,B,…", type=_names, default=(), help="leave these classes out"
    )
    division = command.add_argument_group("division of a split; near-duplicates stay on one side")
    for split in ("val", "test"):
        division.add_argument(
            f"--{split}",
            metavar="SHARE",
            type=float,
            default=0.0,
            help=f"share of the images that form the split {split}, such as 0.2",
        )
    division.add_argument(
        "--from",
        metavar="SPLIT",
        default="",
        dest="divided",
        help="the split to divide (default: the only one); the rest of it is called train",
    )
    division.add_argument("--seed", type=int, default=0, help="of the division (default: 0)")


def _pair(text: str) -> tuple[str, str]:
    old, equals, new = (part.strip() for part in text.partition("="))
    if not (old and equals and new):
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD=NEW, such as automobile=car")
    return old, " ".join(new.split())


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _coco_split(text: str) -> CocoSplit:
    name, annotations, images = (*text.split(":"), "", "")[:3]
    if text.count(":") != 2 or not (name and annotations and images):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME:FILE.json:FOLDER, such as train:instances_train.json:train2017"
        )
    return CocoSplit(name, local_path(annotations), local_path(images))


def _common(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments that every format takes."""
    chosen = {field: getattr(options, field) for field in Choices._fields}
    choices = Choices(**chosen | {"rename": tuple(options.rename)})
    common = {field: getattr(options, field) for field in ("name", "data_dir", "strict", "force")}
    return {**common, "choices": choices}


def _voc(options: argparse.Namespace) -> PrepareReport:
    options.name = options.name or dataset_name(options.folder)
    return prepare_voc_folder(
        options.folder,
        class_names=options.classes,
        splits=options.splits,
        images=options.images,
        annotations=options.annotations,
        **_common(options),
    )


if __name__ == "__main__":
    cli.run(main)
