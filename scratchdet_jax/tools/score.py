"""Scores detection files against annotations.

python -m scratchdet_jax.tools.score voc --devkit=VOCdevkit/VOC2007 --split=test --detections=DIR
python -m scratchdet_jax.tools.score coco --annotations=instances.json --detections=results.json
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scratchdet_jax import cli
from scratchdet_jax.data.voc_xml import VocObject, parse_annotation
from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation import coco, voc
from scratchdet_jax.evaluation.detections import ImageGroundTruth


def score_voc(devkit: Path, split: str, detections: Path, metric: voc.Metric) -> dict[str, Any]:
    """Scores a folder of comp4_det_SPLIT_CLASS.txt files against a VOC folder's XML files.

    The classes are those of the split's annotations and those of the files. A class without a file
    has no detections; this is noted on stderr.

    Returns:
        The figures for the JSON file: "metric", "mAP", "AP" by class (None without ground truth),
        and "ground_truths" and "detections", the counts by class.

    Raises:
        UserError: a file is missing or malformed, or they do not belong together.
    """
    objects = read_objects(devkit, split)
    files = detections.glob(f"comp4_det_{split}_*.txt")
    of_files = {path.stem.removeprefix(f"comp4_det_{split}_") for path in files}
    of_truth = {item.name for items in objects.values() for item in items}
    names = sorted(of_truth | of_files)
    ground_truth = {image_id: _ground_truth(items, names) for image_id, items in objects.items()}
    found = voc.read_detections(detections, split, names)
    for name in names:
        path = voc.detections_file(detections, split, name)
        if not path.is_file():
            print(f"note: {path} is missing: no detections of {name}", file=sys.stderr)
    result = voc.evaluate(found, ground_truth, names, metric=metric)
    counts = {"ground_truths": result.ground_truths, "detections": result.detections}
    return {"metric": f"voc_{metric}", **result.record(), **counts}


def read_objects(devkit: Path, split: str) -> dict[str, tuple[VocObject, ...]]:
    """The annotated objects of each image in a split of a VOC folder, by image id.

    Raises:
        UserError: the folder, the split's list or an annotation is missing, or an annotation has an
            object that cannot be read (skipping it would change the score).
    """
    listing = devkit / "ImageSets" / "Main" / f"{split}.txt"
    if not devkit.is_dir():
        raise UserError(f"--devkit {devkit}: there is no such folder")
    if not listing.is_file():
        known = sorted(path.stem for path in listing.parent.glob("*.txt"))
        splits = f"choose from {', '.join(known)}" if known else f"{devkit} has no splits"
        raise UserError(f"--split {split}: there is no file {listing}; {splits}")
    lines = listing.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    ids = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not ids:
        raise UserError(f"--split {split}: {listing} is empty")
    objects = {}
    for image_id in ids:
        path = devkit / "Annotations" / f"{image_id}.xml"
        try:
            annotation = parse_annotation(path.read_bytes())
        except OSError as error:
            raise UserError(
                f"annotation {path} of split {split!r} cannot be read: {error.strerror}"
            ) from error
        except ValueError as error:
            raise UserError(f"annotation {path} cannot be read: {error}") from error
        if annotation.misplaced:
            raise UserError(f"{path}: {annotation.misplaced[0]}")
        objects[image_id] = annotation.objects
        for number, item in enumerate(objects[image_id], start=1):
            if item.problem:
                raise UserError(f"{path}, object {number} ({item.name}): {item.problem}")
    return objects


def _ground_truth(items: Sequence[VocObject], names: Sequence[str]) -> ImageGroundTruth:
    """The objects of one image as annotated, with swapped corners put in order."""
    corners = np.array([item.box_pixels for item in items], np.float64).reshape(-1, 2, 2)
    return ImageGroundTruth(
        np.sort(corners, axis=1).reshape(-1, 4),
        np.array([names.index(item.name) + 1 for item in items], np.int64),
        np.array([item.is_difficult for item in items], bool),
    )


def score_coco(annotations: Path, detections: Path) -> dict[str, Any]:
    """Scores a COCO results file against an annotation file.

    Returns:
        The figures for the JSON file: "metric", "mAP", "AP" by class (None without ground truth),
        and COCO's other figures.

    Raises:
        UserError: a file is missing or malformed, or they do not belong together.
    """
    truth = coco.read_annotations(annotations)
    names = [category["name"] for category in truth["categories"]]
    found = coco.read_results(detections, coco.category_ids(truth, names))
    result = coco.evaluate_annotations(found, truth, names)
    return {"metric": "coco", **result.record()}


def print_table(record: Mapping[str, Any]) -> None:
    """Prints one row per class and the mean, then the other figures of the record."""
    width = max(len("class"), *map(len, record["AP"]), 0)
    counts = [key for key in ("ground_truths", "detections") if key in record]
    print(f"{'class':<{width}}  {'AP':>7}" + "".join(f"  {key:>13}" for key in counts))
    for name, value in record["AP"].items():
        figure = f"{value:7.4f}" if value is not None else "      –"
        print(
            f"{name:<{width}}  {figure}" + "".join(f"  {record[key][name]:>13}" for key in counts)
        )
    totals = "".join(f"  {sum(record[key].values()):>13}" for key in counts)
    print(f"{'mean':<{width}}  {_figure(record['mAP'])}{totals}")
    for name, value in record.items():
        if isinstance(value, float) and name != "mAP":
            print(f"{name:<{width}}  {_figure(value)}")
    absent = [name for name, value in record["AP"].items() if value is None]
    if absent:
        print(f"not in the mean, for lack of ground truth: {', '.join(absent)}")


def _figure(value: float | None) -> str:
    return f"{'–':>7}" if value is None or math.isnan(value) else f"{value:7.4f}"


def without_nan(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with None in place of NaN, as JSON has no NaN."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in record.items()
    }


def main(argv: Sequence[str]) -> None:
    """Parses the command line, scores and prints."""
    parser = argparse.ArgumentParser(prog=argv[0], description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    for_voc = kinds.add_parser("voc", help="comp4_det_SPLIT_CLASS.txt files against VOC XML files")
    for_voc.add_argument("--devkit", type=Path, required=True, help="such as VOCdevkit/VOC2007")
    for_voc.add_argument("--split", required=True, help="a list in ImageSets/Main, such as test")
    for_voc.add_argument("--detections", type=Path, required=True, help="folder of the files")
    for_voc.add_argument("--metric", choices=("11point", "area"), default="11point")
    for_coco = kinds.add_parser("coco", help="a COCO results file against an annotation file")
    for_coco.add_argument("--annotations", type=Path, required=True)
    for_coco.add_argument("--detections", type=Path, required=True)
    for kind in (for_voc, for_coco):
        kind.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(argv[1:])
    if options.kind == "voc":
        record = score_voc(options.devkit, options.split, options.detections, options.metric)
    else:
        record = score_coco(options.annotations, options.detections)
    print_table(record)
    if options.json:
        cli.write_json(options.json, without_nan(record), "--json")


if __name__ == "__main__":
    cli.run(main)
