"""Scores detection files against annotations.

scratchdet score voc --devkit=VOCdevkit/VOC2007 --split=test --detections=DIR
scratchdet score coco --annotations=instances.json --detections=results.json
"""

import argparse
import glob
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from reprlib import repr as brief
from typing import Any, TypeVar

import numpy as np

from scratchdet_jax import cli
from scratchdet_jax.datasets import coco_scan, voc_scan
from scratchdet_jax.datasets.coco_json import image_key, integer, numbers, read_coco
from scratchdet_jax.datasets.objects import Defect
from scratchdet_jax.datasets.report import defect_lines
from scratchdet_jax.datasets.untrusted import MAX_JSON_BYTES, printable, read_named
from scratchdet_jax.datasets.voc_xml import VocObject
from scratchdet_jax.errors import UserError, plural
from scratchdet_jax.evaluation import coco, formats, voc
from scratchdet_jax.evaluation.detections import ImageDetections, ImageGroundTruth, check_images
from scratchdet_jax.files import write_json
from scratchdet_jax.paths import local_path, user_path
from scratchdet_jax.reports.page.tables import number, text_table

T = TypeVar("T")


def score_voc(
    devkit: Path, split: str, detections: Path, metric: voc.Metric, strict: bool = False
) -> dict[str, Any]:
    """Scores a folder of comp4_det_SPLIT_CLASS.txt files against VOC annotations.

    The annotations are read as `prepare voc` reads them, in the same layouts and with the same
    repairs, which are reported on stderr. Boxes are not clipped, because no image is opened. The
    classes are all that the split's annotations or the files name. A class without a file has
    no detections; this is noted on stderr.

    `split` is a list in ImageSets/Main, or a folder that is a split; `metric`: see
    `voc.average_precision`. With `strict`, annotations with defects are refused.

    Returns:
        The figures for the JSON file: "metric", "mAP", "AP" by class (None without ground truth),
        "mAP@.5:.95" by COCO's rule, and "ground_truths" and "detections", the counts by class.

    Raises:
        UserError: a file is missing or malformed, or they do not belong together.
    """
    truth = voc_scan.read_ground_truth(devkit, split)
    _report(str(devkit), truth.defects, truth.notes, strict)
    of_truth = {item.name for items in truth.objects.values() for item in items}
    file_split = _split_of_files(detections, split, truth.split)
    of_files = classes_of_files(detections, file_split, of_truth)
    names = sorted(of_truth | set(of_files))
    ground_truth = {i: _ground_truth(items, names) for i, items in truth.objects.items()}
    found = read_voc_files(detections, file_split, names)
    for name in names:
        path = formats.voc_file(detections, file_split, name)
        if not path.is_file():
            _note(f"{path} is missing: no detections of {printable(name)}")
    found = _without_left_out(found, frozenset(truth.left_out))
    result = voc.evaluate(found, ground_truth, names, metric=metric)
    by_coco = coco.evaluate(found, ground_truth, names, only_ap=True).record()
    strict_map = {coco.MAP_KEY: by_coco["mAP"]}
    counts = {"ground_truths": result.ground_truths, "detections": result.detections}
    return {"metric": f"voc_{metric}", **result.record(), **strict_map, **counts}


def _split_of_files(detections: Path, *names: str) -> str:
    """Returns the split's name in the files: a given one, or what eval writes for it."""
    candidates = (*names, *(formats.DEVKIT_SPLITS.get(name, name) for name in names))
    for name in candidates:
        if any(detections.glob(f"comp4_det_{glob.escape(name)}_*.txt")):
            return name
    return names[0]


def _ground_truth(items: Sequence[VocObject], names: Sequence[str]) -> ImageGroundTruth:
    """Converts the objects of one image."""
    return ImageGroundTruth(
        np.array([item.box_pixels for item in items], np.float64).reshape(-1, 4),
        np.array([names.index(item.name) + 1 for item in items], np.int64),
        np.array([item.is_difficult for item in items], bool),
    )


def score_coco(annotations: Path, detections: Path, strict: bool = False) -> dict[str, Any]:
    """Scores a COCO results file against an annotation file.

    The annotations are read as `prepare coco` reads them, with the same repairs, which are reported
    on stderr. Boxes are not clipped, because no image is opened.

    Returns:
        The figures for the JSON file: "metric", "mAP", "AP" by class (None without ground truth),
        and COCO's other figures.

    Raises:
        UserError: a file is missing or malformed, they do not belong together, or `strict` is set
            and the annotations have defects.
    """
    truth = coco_scan.read_ground_truth(read_coco(annotations))
    _report(str(annotations), truth.defects, truth.notes, strict)
    categories = dict(truth.categories)
    found = read_coco_results(detections, categories)
    found = _without_left_out(found, {str(image_id) for image_id in truth.left_out})
    # In the order of the ids, in which pycocotools takes images of equal scores.
    ids = sorted(truth.images, key=lambda i: (isinstance(i, str), i))
    position = {str(image_id): i for i, image_id in enumerate(ids)}
    check_images(found, position)
    labelled = [{**row, "image_id": position[str(row["image_id"])]} for row in truth.annotations]
    rows = [{**row, "image_id": position[name]} for name in found for row in found[name]]
    result = coco.evaluate_rows(len(ids), labelled, rows, truth.categories)
    return {"metric": "coco", **result.record()}


def classes_of_files(directory: Path, split: str, known: Collection[str]) -> list[str]:
    """Returns the classes that have a file comp4_det_SPLIT_CLASS.txt.

    The `known` classes, which the ground truth has, may have names that had to be cut.
    """
    prefix = f"comp4_det_{split}_"
    of_known = {formats.voc_file(directory, split, name).name: name for name in known}
    return [
        of_known.get(path.name, formats.unescaped(path.stem.removeprefix(prefix)))
        for path in sorted(directory.glob("*.txt"))
        if path.name.startswith(prefix)
    ]


def read_voc_files(
    directory: Path, split: str, class_names: Sequence[str]
) -> dict[str, ImageDetections]:
    """Reads the files of `formats.write_voc`; a class whose file is missing has no detections.

    Raises:
        UserError: the directory or all of the files are missing, or a line is malformed.
    """
    if not directory.is_dir():
        raise UserError(f"detections folder {str(directory)!r} does not exist")
    rows: dict[str, list[tuple[float, ...]]] = {}
    present = 0
    for label, name in enumerate(class_names, start=1):
        path = formats.voc_file(directory, split, name)
        if not path.is_file():
            continue
        present += 1
        for image_id, values in _read_class(path):
            rows.setdefault(image_id, []).append((*values, label))
    if not present:
        raise UserError(
            f"folder {str(directory)!r} has no file comp4_det_{split}_CLASS.txt for any class: "
            "check the folder and the split"
        )
    detections = {}
    for image_id, image_rows in rows.items():
        table = np.array(image_rows, np.float64)
        detections[image_id] = ImageDetections(
            table[:, [2, 1, 4, 3]], table[:, 0], table[:, 5].astype(np.int64)
        )
    return detections


def _read_class(path: Path) -> list[tuple[str, tuple[float, ...]]]:
    """Reads one file; each line becomes (image id, (score, xmin, ymin, xmax, ymax))."""
    rows: list[tuple[str, tuple[float, ...]]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"detections file {str(path)!r} cannot be read: {error}") from error
    for position, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            # From the right, because an image id may contain spaces.
            image_id, *fields = line.strip().rsplit(maxsplit=5)
            score, xmin, ymin, xmax, ymax = map(float, fields)
        except ValueError:
            raise UserError(
                f"{path}, line {position}: {line.strip()[:80]!r} is not "
                "'image_id score xmin ymin xmax ymax'"
            ) from None
        if not np.isfinite([score, xmin, ymin, xmax, ymax]).all():
            raise UserError(f"{path}, line {position}: the score or the box is not finite")
        rows.append((image_id, (score, xmin, ymin, xmax, ymax)))
    return rows


def read_coco_results(path: Path, categories: Collection[int]) -> dict[str, list[dict[str, Any]]]:
    """Reads a COCO results file.

    `categories` are the category ids of the annotation file.

    Returns:
        By image id, as text: {"category_id", "bbox": [x, y, width, height] in pixels, "score"}.

    Raises:
        UserError: the file is missing or malformed, or has a category id that is not listed.
    """
    content, _ = read_named(path, MAX_JSON_BYTES, json.loads, "JSON")
    if not isinstance(content, list):
        raise UserError(f"{path} is not a COCO results file: it must be a list of detections")
    found: dict[str, list[dict[str, Any]]] = {}
    for position, entry in enumerate(content):
        try:
            image_id, row = _read_entry(entry, categories)
        except ValueError as error:
            raise UserError(f"{path}: detections[{position}]: {error}") from None
        found.setdefault(image_id, []).append(row)
    return found


def _read_entry(entry: Any, categories: Collection[int]) -> tuple[str, dict[str, Any]]:
    """Returns the image id of an entry, and its other fields; a ValueError says what is wrong."""
    fields = entry if isinstance(entry, dict) else {}
    image_id, category = image_key(fields.get("image_id")), integer(fields.get("category_id"))
    box, score = numbers(fields.get("bbox"), 4), numbers([fields.get("score")], 1)
    if image_id is None or category is None or box is None or score is None:
        raise ValueError(
            f"it is {brief(entry)}; it must have an image_id, a category_id, a bbox of four finite "
            "numbers x, y, width, height, and a finite score"
        )
    if category not in categories:
        raise ValueError(f"category id {category} is not in the category table")
    return str(image_id), {"category_id": category, "bbox": list(box), "score": score[0]}


def _report(source: str, defects: Sequence[Defect], notes: Sequence[str], strict: bool) -> None:
    """Prints the notes and defects as `prepare` does, on stderr; refuses defects if strict."""
    for note in notes:
        _note(printable(note))
    if not defects:
        return
    count = plural(len(defects), "defect")
    print(f"{source}: {count}", *defect_lines(defects), sep="\n", file=sys.stderr)
    if strict:
        raise UserError(f"{source} has {count}, which --strict does not allow: nothing was scored")


def _without_left_out(found: Mapping[str, T], left_out: Collection[str]) -> dict[str, T]:
    """Drops the detections in images whose ground truth cannot be used."""
    kept = {image_id: item for image_id, item in found.items() if image_id not in left_out}
    if len(kept) < len(found):
        _note(f"detections in images left out are not scored: {len(found) - len(kept)} images")
    return kept


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def print_table(record: Mapping[str, Any]) -> None:
    """Prints one row per class and the mean, then the other figures of the record."""
    counts = [key for key in ("ground_truths", "detections") if key in record]
    rows = [("class", "AP", *counts)]
    for name, ap in record["AP"].items():
        rows.append((name, number(ap, 4), *(str(record[key][name]) for key in counts)))
    totals = (str(sum(record[key].values())) for key in counts)
    rows.append(("mean", number(record["mAP"], 4), *totals))
    for name, value in record.items():
        if name != "mAP" and isinstance(value, float | None):
            rows.append((name, number(value, 4), *[""] * len(counts)))
    print(text_table(rows))
    absent = [name for name, value in record["AP"].items() if value is None]
    if absent:
        print(f"not in the mean, for lack of ground truth: {', '.join(absent)}")


def parser(program: str) -> argparse.ArgumentParser:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    for_voc = kinds.add_parser("voc", help="comp4_det_SPLIT_CLASS.txt files against VOC XML files")
    for_voc.add_argument(
        "--devkit",
        type=local_path,
        required=True,
        help="such as VOCdevkit/VOC2007, or a folder in another layout of `prepare voc`",
    )
    for_voc.add_argument(
        "--split",
        required=True,
        help="a list in ImageSets/Main, such as test, or a folder that is a split, such as valid",
    )
    for_voc.add_argument("--detections", type=local_path, required=True, help="folder of the files")
    for_voc.add_argument("--metric", choices=("11point", "area"), default="11point")
    for_coco = kinds.add_parser("coco", help="a COCO results file against an annotation file")
    for_coco.add_argument("--annotations", type=local_path, required=True)
    for_coco.add_argument("--detections", type=local_path, required=True)
    for kind in (for_voc, for_coco):
        kind.add_argument("--json", type=user_path, help="also write the figures to this file")
        kind.add_argument(
            "--strict", action="store_true", help="treat any defect of the annotations as an error"
        )
    return parser


def main(argv: Sequence[str]) -> None:
    """Parses the command line, scores and prints."""
    options = parser(argv[0]).parse_args(argv[1:])
    if options.kind == "voc":
        record = score_voc(
            options.devkit, options.split, options.detections, options.metric, options.strict
        )
    else:
        record = score_coco(options.annotations, options.detections, options.strict)
    print_table(record)
    if options.json:
        write_json(options.json, record, "--json")


if __name__ == "__main__":
    cli.run(main)
