"""COCO average precision by pycocotools, and COCO's results file.

Labels are contiguous, 1…C; COCO's category ids are not (80 classes use ids up to 90). Only the
category table converts between them: label i ↔ class name i ↔ the category of that name.
"""

import contextlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from scratchdet_jax.data import coco_classes
from scratchdet_jax.datasets import coco_json
from scratchdet_jax.datasets.coco_scan import read_ground_truth
from scratchdet_jax.datasets.defects import Defect
from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation.detections import (
    ImageDetections,
    ImageGroundTruth,
    flatten_detections,
    flatten_ground_truth,
)

# In the order of COCOeval.stats; s, m, l are areas below 32², up to 96², and above.
METRICS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)

MAP_KEY = "mAP@.5:.95"
"""Names COCO's AP where it stands beside a mAP of VOC; it also asks how well the boxes fit."""


class CocoResult(NamedTuple):
    """COCO's summary of a split.

    Attributes:
        metrics: value in [0, 1] for each name in `METRICS`; NaN where no ground truth counts
            (pycocotools returns −1).
        per_class: AP over IoU 0.5:0.95 by class name; None for a class without ground truth.
        log: the output of pycocotools.
    """

    metrics: dict[str, float]
    per_class: dict[str, float | None]
    log: str

    def record(self) -> dict[str, Any]:
        """Returns the results as metrics.jsonl stores them.

        "mAP" and the other metrics by name, and "AP" by class; an undefined value is None.
        """
        figures = {
            "mAP" if name == "AP" else name: None if np.isnan(value) else value
            for name, value in self.metrics.items()
        }
        return {**figures, "AP": self.per_class}


class MeanAP(NamedTuple):
    """COCO's AP alone, objects of all sizes.

    Attributes:
        mean: AP over IoU 0.5:0.95 in [0, 1]; NaN where no ground truth counts.
        per_class: the same by class name; None for a class without ground truth.
    """

    mean: float
    per_class: dict[str, float | None]

    def record(self) -> dict[str, Any]:
        """Returns "mAP", and "AP" by class, as in metrics.jsonl; None where undefined."""
        return {"mAP": None if np.isnan(self.mean) else self.mean, "AP": self.per_class}


def evaluate(
    detections: Mapping[str, ImageDetections],
    ground_truth: Mapping[str, ImageGroundTruth],
    class_names: Sequence[str],
) -> CocoResult:
    """Scores detections against ground truth held in memory.

    An ignored box is a crowd. Objects are small, medium or large by the area of their box. An
    annotation file with segmentation areas therefore gives different values for the metrics by
    size (see `evaluate_annotations`), and the same for all others.

    Args:
        detections: by image id; images without an entry have no detections.
        ground_truth: by image id, all images of the split.
        class_names: [C]; label i is class_names[i − 1].

    Raises:
        UserError: an image is not in the ground truth, a label is out of range, or a score or a box
            is not finite.
    """
    images, truth, found, labels = _in_memory(detections, ground_truth, class_names)
    return _run(images, truth, found, class_names, labels)


def mean_average_precision(
    detections: Mapping[str, ImageDetections],
    ground_truth: Mapping[str, ImageGroundTruth],
    class_names: Sequence[str],
) -> MeanAP:
    """Computes the "AP" of `evaluate`, in about a third of the time: no other metric is computed.

    The arguments and errors are those of `evaluate`.
    """
    images, truth, found, labels = _in_memory(detections, ground_truth, class_names)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _prepared(images, truth, found, class_names, labels)
        evaluation.params.areaRng = evaluation.params.areaRng[:1]  # all sizes
        evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.params.maxDets = evaluation.params.maxDets[-1:]
        evaluation.evaluate()
        evaluation.accumulate()
    per_class = _per_class(evaluation, class_names, labels)
    defined = [value for value in per_class.values() if value is not None]
    return MeanAP(float(np.mean(defined)) if defined else float("nan"), per_class)


def evaluate_annotations(
    detections: Mapping[str, ImageDetections],
    annotations: Mapping[str, Any],
    class_names: Sequence[str],
) -> CocoResult:
    """Scores detections against an annotation file.

    Args:
        detections: by image id, as text; images without an entry have no detections.
        annotations: the content of `read_annotations`; all images are scored.
        class_names: [C]; label i is class_names[i − 1]. Categories with other names are ignored.

    Raises:
        UserError: as for `evaluate`, or a class is not in the category table.
    """
    ids = category_ids(annotations, class_names)
    # Numbered in order of id: pycocotools breaks ties between images in that order.
    images = sorted(
        (image["id"] for image in annotations["images"]), key=lambda i: (isinstance(i, str), i)
    )
    number = {image_id: i for i, image_id in enumerate(images)}
    wanted = set(ids)
    truth = [
        {**annotation, "image_id": number[annotation["image_id"]]}
        for annotation in annotations["annotations"]
        if annotation["category_id"] in wanted
    ]
    found = _result_rows(detections, dict.fromkeys(map(str, images)), ids)
    return _run(range(len(images)), truth, found, class_names, ids)


def category_ids(annotations: Mapping[str, Any], class_names: Sequence[str]) -> tuple[int, ...]:
    """The category id of each label: element i − 1 belongs to label i.

    Raises:
        UserError: a class name is not in the table of categories.
    """
    by_name = {category["name"]: category["id"] for category in annotations["categories"]}
    missing = [name for name in class_names if name not in by_name]
    if missing:
        raise UserError(
            f"the annotation file has no category {missing[0]!r} ({len(missing)} of "
            f"{len(class_names)} classes are missing): it belongs to another set of classes"
        )
    return tuple(by_name[name] for name in class_names)


def submission_category_ids(class_names: Sequence[str]) -> tuple[int, ...]:
    """Returns the category id of each label when there is no annotation file.

    COCO's own ids if the classes are COCO's 80 (its evaluation server accepts no others), else 1…C.
    """
    if set(class_names) == set(coco_classes.IDS):
        return tuple(coco_classes.IDS[name] for name in class_names)
    return tuple(range(1, len(class_names) + 1))


class AnnotationFile(NamedTuple):
    """An annotation file as `read_annotations` reads it.

    Attributes:
        content: "images", "categories" and "annotations", with the fields that scoring needs.
        left_out: ids of listed images that cannot be used, as text.
        defects: everything that was left out or repaired, in the words of `tools.prepare`.
        notes: decisions made for the user.
    """

    content: dict[str, list[dict[str, Any]]]
    left_out: frozenset[str]
    defects: list[Defect]
    notes: list[str]


def read_annotations(path: str | Path) -> AnnotationFile:
    """Reads a COCO annotation file as `tools.prepare` does, with the same repairs.

    The images are not opened, so boxes are not clipped to them. Image ids may also be text.
    Categories are sorted by id, which is the order of the labels.

    Raises:
        UserError: the file is missing or not a COCO annotation file, or its categories are
            unusable.
    """
    truth = read_ground_truth(coco_json.read_coco(Path(path)))
    content = {
        "images": [{"id": image_id} for image_id in truth.images],
        "categories": [{"id": number, "name": name} for number, name in truth.categories],
        "annotations": truth.annotations,
    }
    left_out = frozenset(map(str, truth.left_out))
    return AnnotationFile(content, left_out, truth.defects, truth.notes)


def write_results(
    path: str | Path, detections: Mapping[str, ImageDetections], category_ids: Sequence[int]
) -> None:
    """Writes COCO's results file: a list of {image_id, category_id, bbox (x, y, w, h), score}.

    `result` says how values are rounded. An image id that is a decimal number is written as a
    number, unless two ids are the same number (such as 1 and 01): then all ids are written as text.

    Args:
        path: the JSON file; its folder is created if missing.
        detections: by image id.
        category_ids: [C]; label i is category_ids[i − 1].

    Raises:
        UserError: a label is out of range or a value is not finite.
    """
    rows = _result_rows(detections, dict.fromkeys(detections), category_ids)
    ids = [as_number(str(name)) for name in detections]
    if len(set(ids)) < len(ids):
        ids = [str(name) for name in detections]
    results = [
        result(ids[row["image_id"]], row["category_id"], row["bbox"], row["score"]) for row in rows
    ]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results), encoding="utf-8")


def result(
    image_id: int | str, category_id: int, bbox: Sequence[float], score: float
) -> dict[str, Any]:
    """One entry of a results file; `bbox` is (x, y, width, height) in pixels.

    Coordinates are rounded to a thousandth of a pixel; scores keep nine digits, enough to restore a
    float32 exactly.
    """
    return {
        "image_id": image_id,
        "category_id": int(category_id),
        "bbox": [round(float(value), 3) for value in bbox],
        "score": float(f"{score:.9g}"),
    }


def read_results(path: str | Path, category_ids: Sequence[int]) -> dict[str, ImageDetections]:
    """Reads a results file; label i is category_ids[i − 1], image ids become text.

    Raises:
        UserError: the file is missing or malformed, or has a category id that is not listed.
    """
    content = _read_json(path)
    if not isinstance(content, list):
        raise UserError(f"{path} is not a COCO results file: it must be a list of detections")
    label_of = {category_id: label for label, category_id in enumerate(category_ids, start=1)}

    def row(entry: dict[str, Any]) -> tuple[str, tuple[float, ...]]:
        if not isinstance(entry, dict):
            raise ValueError("it is not an object")
        x, y, width, height = map(float, entry["bbox"])
        if entry["category_id"] not in label_of:
            raise ValueError(f"category id {entry['category_id']!r} is not in the category table")
        values = (
            y,
            x,
            y + height,
            x + width,
            float(entry["score"]),
            label_of[entry["category_id"]],
        )
        if not np.isfinite(values).all():
            raise ValueError("the score or the box is not finite")
        return str(_image_id(entry["image_id"])), values

    rows: dict[str, list[tuple[float, ...]]] = {}
    for image_id, values in _read_entries(path, {"detections": content}, "detections", row):
        rows.setdefault(image_id, []).append(values)
    tables = {image_id: np.array(values, np.float64) for image_id, values in rows.items()}
    return {
        image_id: ImageDetections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))
        for image_id, table in tables.items()
    }


def _in_memory(
    detections: Mapping[str, ImageDetections],
    ground_truth: Mapping[str, ImageGroundTruth],
    class_names: Sequence[str],
) -> tuple[Sequence[int], list[dict[str, Any]], list[dict[str, Any]], Sequence[int]]:
    """Image numbers, annotations, results and category ids (the labels) for COCOeval."""
    truth = flatten_ground_truth(ground_truth, len(class_names))
    boxes_xywh = _to_xywh(truth.boxes_pixels)
    columns = (truth.image, truth.labels, boxes_xywh, truth.ignore)
    annotations = [
        {
            "image_id": image,
            "category_id": label,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": int(ignore),
        }
        for image, label, box, ignore in zip(*(c.tolist() for c in columns), strict=True)
    ]
    labels = tuple(range(1, len(class_names) + 1))
    found = _result_rows(detections, dict.fromkeys(ground_truth), labels)
    return range(len(ground_truth)), annotations, found, labels


def _run(
    image_numbers: Sequence[int],
    truth: list[dict[str, Any]],
    found: list[dict[str, Any]],
    class_names: Sequence[str],
    category_ids: Sequence[int],
) -> CocoResult:
    """Runs COCOeval; image ids are the numbers in `image_numbers`."""
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        evaluation = _prepared(image_numbers, truth, found, class_names, category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = np.where(np.asarray(evaluation.stats) < 0, np.nan, evaluation.stats)
    metrics = dict(zip(METRICS, map(float, stats), strict=True))
    return CocoResult(metrics, _per_class(evaluation, class_names, category_ids), log.getvalue())


def _prepared(
    image_numbers: Sequence[int],
    truth: list[dict[str, Any]],
    found: list[dict[str, Any]],
    class_names: Sequence[str],
    category_ids: Sequence[int],
) -> COCOeval:
    """Returns a COCOeval of the rows that has not run yet."""
    categories = [
        {"id": category_id, "name": name}
        for category_id, name in zip(category_ids, class_names, strict=True)
    ]
    images = [{"id": number} for number in image_numbers]
    coco_truth, coco_found = (_index(rows, images, categories) for rows in (truth, found))
    return COCOeval(coco_truth, coco_found, "bbox")


def _per_class(
    evaluation: COCOeval, class_names: Sequence[str], category_ids: Sequence[int]
) -> dict[str, float | None]:
    """AP by class name; None for a class without ground truth that counts."""
    # precision [IoU, recall, class in order of id, area range, max detections]; −1: no ground truth
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class: dict[str, float | None] = {}
    for name, category_id in zip(class_names, category_ids, strict=True):
        values = precision[:, :, sorted(category_ids).index(category_id)]
        values = values[values > -1]
        per_class[name] = float(values.mean()) if values.size else None
    return per_class


def _index(
    rows: list[dict[str, Any]], images: list[dict[str, int]], categories: list[dict[str, Any]]
) -> COCO:
    """Builds a COCO object directly, because `loadRes` fails on an empty list of results.

    Annotations are numbered from 1, because id 0 means "no match" to COCOeval.
    """
    coco = COCO()
    annotations = [{**row, "id": i} for i, row in enumerate(rows, start=1)]
    coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
    coco.createIndex()
    return coco


def _result_rows(
    detections: Mapping[str, ImageDetections],
    images: Mapping[str, None],
    category_ids: Sequence[int],
) -> list[dict[str, Any]]:
    """Returns one row per detection; "image_id" is the position of the image's id in `images`."""
    detections = {str(image_id): image for image_id, image in detections.items()}
    images = {str(image_id): None for image_id in images}
    table = flatten_detections(detections, images, len(category_ids))
    boxes_xywh = _to_xywh(table.boxes_pixels)
    columns = (table.image, table.labels, boxes_xywh, table.scores)
    return [
        {
            "image_id": image,
            "category_id": category_ids[label - 1],
            "bbox": box,
            "area": box[2] * box[3],
            "score": score,
        }
        for image, label, box, score in zip(*(c.tolist() for c in columns), strict=True)
    ]


def _to_xywh(boxes: np.ndarray) -> np.ndarray:
    """Converts (ymin, xmin, ymax, xmax) [n, 4] to (xmin, ymin, width, height)."""
    ymin, xmin, ymax, xmax = np.moveaxis(boxes, -1, 0)
    return np.stack([xmin, ymin, xmax - xmin, ymax - ymin], axis=-1)


def as_number(image_id: str) -> int | str:
    """An image id as a number if it is a decimal number, as COCO's are."""
    return int(image_id) if re.fullmatch("-?[0-9]+", image_id) else image_id


def _image_id(value: Any) -> int | str:
    """The id as a number (7.0 is 7) or as text."""
    found = coco_json.image_key(value)
    if found is None:
        raise ValueError(f"the image id {value!r} is neither a whole number nor text")
    return found


def _read_json(path: str | Path) -> Any:
    try:
        data = Path(path).read_bytes()
        text = data.decode(json.detect_encoding(data)).removeprefix("\ufeff")
        return json.loads(text)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except RecursionError:
        raise UserError(f"{path} cannot be read: its JSON is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def _read_entries(
    path: str | Path, content: Mapping[str, Any], key: str, convert: Callable[[Any], Any]
) -> list[Any]:
    """Converts each entry of one list of the file; an error names the list and the entry."""
    entries = []
    for i, entry in enumerate(content[key]):
        try:
            entries.append(convert(entry))
        except KeyError as error:
            raise UserError(f"{path}: {key}[{i}] has no field {error.args[0]!r}") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{path}: {key}[{i}] is malformed: {error}") from error
    return entries
