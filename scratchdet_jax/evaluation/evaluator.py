"""Detects objects once in every image of a split and scores the detections."""

import collections
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from scratchdet_jax.config.scales import Scale, parse_scales
from scratchdet_jax.data.images import decode_to_canvas
from scratchdet_jax.data.loading import eval_loader, to_device
from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.detector import Detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation import coco, voc
from scratchdet_jax.evaluation.detections import (
    ImageDetections,
    ImageGroundTruth,
    to_image_detections,
)
from scratchdet_jax.evaluation.drawing import draw_detections
from scratchdet_jax.evaluation.multiscale import make_scale_step, merge_scales
from scratchdet_jax.ops.nms import Detections
from scratchdet_jax.parallel import processes
from scratchdet_jax.parallel.devices import DeviceMapping
from scratchdet_jax.progress import track

PICTURED_SCORE = 0.3  # lowest score of a detection in a picture
METRIC_LABELS = {
    "voc_11point": "VOC 11-point, IoU 0.5",
    "voc_area": "VOC area, IoU 0.5",
    "coco": "COCO, IoU 0.5:0.95",
}


class Evaluation(NamedTuple):
    """The evaluation of a split.

    Attributes:
        results: "mAP", "label" (the rule that it follows, in words) and "AP" by class; for VOC
            also `coco.MAP_KEY`, for COCO its other metrics.
        detections: by image id, in pixels of the original image.
        ground_truth: by image id, in pixels of the original image.
        sizes: by image id, height and width of the original image in pixels.
    """

    results: dict[str, Any]
    detections: dict[str, ImageDetections]
    ground_truth: dict[str, ImageGroundTruth]
    sizes: dict[str, tuple[int, int]]


def map_eval_steps(detector: Detector, mapping: DeviceMapping) -> list[Callable[..., Any]]:
    """Returns the functions `(variables, batch) → Detections` of an evaluation, one per scale."""
    config = detector.config
    scales = parse_scales(config.eval.multiscale) or (Scale(config.image_size, config.image_size),)
    return [mapping.map_eval_step(make_scale_step(detector, scale)) for scale in scales]


class Evaluator:
    """Evaluates variables of one detector on one split; compiles once per scale."""

    def __init__(self, detector: Detector, mapping: DeviceMapping, source: DetectionSource) -> None:
        """Takes the split as `source`; `config.eval` of the detector holds the settings."""
        config = detector.config
        self._detector, self._source = detector, source
        self._mapping = mapping
        self._ids = [source.image_id(i) for i in range(len(source))]
        twice = [name for name, count in collections.Counter(self._ids).items() if count > 1]
        if twice:
            places = [source.describe(i) for i, name in enumerate(self._ids) if name == twice[0]]
            raise UserError(
                f"config.data.eval {source.spec} holds the image {twice[0]} twice ({places[0]}, "
                f"{places[1]}): choose splits that share no images or image ids"
            )

        self._scales = parse_scales(config.eval.multiscale)
        self._steps = map_eval_steps(detector, mapping)

    def evaluate(self, variables: Any, on_batch: Callable[[], None] = lambda: None) -> Evaluation:
        """Detects objects in all images of the split and scores them.

        `on_batch` is called after every batch.
        """
        detections: dict[str, ImageDetections] = {}
        ground_truth: dict[str, ImageGroundTruth] = {}
        sizes: dict[str, tuple[int, int]] = {}
        batch, found = processes.gather(self._all_rows(variables, on_batch))
        for row in np.argsort(batch["id"], kind="stable"):
            if batch["id"][row] < 0:
                continue
            image_id = self._ids[batch["id"][row]]
            original_size = batch["original_size"][row]
            sizes[image_id] = tuple(original_size.tolist())
            detections[image_id] = to_image_detections(found, row, original_size)
            scale = np.tile(original_size.astype(np.float64), 2)
            real = batch["labels"][row] > 0
            ground_truth[image_id] = ImageGroundTruth(
                batch["boxes"][row][real] * scale,
                batch["labels"][row][real],
                batch["ignore"][row][real],
            )
        if len(detections) != len(self._source):
            raise RuntimeError(
                f"only {len(detections)} of {len(self._source)} images of {self._source.spec} "
                "were read"
            )
        return Evaluation(self._score(detections, ground_truth), detections, ground_truth, sizes)

    def pictures(self, evaluation: Evaluation, count: int) -> Iterator[tuple[str, np.ndarray]]:
        """Draws the first images of the split with their boxes; reads and decodes them again.

        Yields:
            The image's id, and its picture, uint8 [h, w, 3] RGB, from the image on the canvas:
            detections from a score of PICTURED_SCORE on, and ground truth (dashed).
        """
        for index in range(min(count, len(self._source))):
            image_id, example = self._ids[index], self._source[index]
            canvas = self._detector.config.data.canvas
            image, size = decode_to_canvas(example["image"], canvas, example["orientation"])
            scale = np.tile(np.divide(image.shape[:2], size), 2)
            found, truth = evaluation.detections[image_id], evaluation.ground_truth[image_id]
            shown = found.scores >= PICTURED_SCORE
            yield (
                image_id,
                draw_detections(
                    image,
                    found.boxes_pixels[shown] * scale,
                    found.labels[shown],
                    found.scores[shown],
                    self._detector.class_names,
                    ground_truth=truth._replace(boxes_pixels=truth.boxes_pixels * scale),
                ),
            )

    def _all_rows(
        self, variables: Any, on_batch: Callable[[], None]
    ) -> tuple[dict[str, np.ndarray], Detections[np.ndarray]]:
        """Returns this process's rows [n, …] of all batches, without images, and detections."""
        kept = ("id", "original_size", "boxes", "labels", "ignore")
        parts = []
        for batch, found in self._batches(variables):
            parts.append(({key: batch[key] for key in kept}, found))
            on_batch()
        return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)

    def _batches(
        self, variables: Any
    ) -> Iterator[tuple[dict[str, np.ndarray], Detections[np.ndarray]]]:
        """Yields host batches with their detections; the next batch runs meanwhile."""
        config = self._detector.config
        batch_size = self._mapping.whole_batch(config.eval.batch_size)
        loader = eval_loader(
            config.data,
            self._source,
            batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

        def put(batch: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, jax.Array]]:
            sent = {key: batch[key][None] for key in ("image", "size")}
            return batch, self._mapping.put_batch(sent)

        total = -(-len(self._source) // batch_size)
        pending = None
        for host, device in track(to_device(loader, put), total, "evaluating", "batch"):
            running = (host, [step(variables, device) for step in self._steps])
            if pending:
                yield self._merged(*pending)
            pending = running
        if pending:
            yield self._merged(*pending)

    def _merged(
        self, batch: dict[str, np.ndarray], running: list[Detections[jax.Array]]
    ) -> tuple[dict[str, np.ndarray], Detections[np.ndarray]]:
        found = self._mapping.local_rows(running)
        if not self._scales:
            return batch, found[0]
        settings = self._detector.config.eval
        return batch, merge_scales(found, self._scales, batch["original_size"], settings)

    def _score(
        self, detections: dict[str, ImageDetections], ground_truth: dict[str, ImageGroundTruth]
    ) -> dict[str, Any]:
        names, metric = self._detector.class_names, self._detector.config.eval.metric
        if metric == "none":
            return {"mAP": None, "AP": {}}
        if metric == "coco":
            record = coco.evaluate(detections, ground_truth, names).record()
        else:
            kind = metric.removeprefix("voc_")
            record = voc.evaluate(detections, ground_truth, names, metric=kind).record()
            strict = coco.evaluate(detections, ground_truth, names, only_ap=True).record()
            record = {"mAP": record["mAP"], coco.MAP_KEY: strict["mAP"], **record}
        return {"mAP": record["mAP"], "label": METRIC_LABELS[metric], **record}


def summary_line(results: Mapping[str, Any]) -> str:
    """Formats the metrics of a split in one line."""
    mean = results["mAP"]
    label = f" ({results['label']})" if "label" in results else ""
    parts = ["mAP undefined: no ground truth" if mean is None else f"mAP {mean:.4f}{label}"]
    parts += [
        f"{name} {value:.4f}"
        for name, value in results.items()
        if name != "mAP" and isinstance(value, float)
    ]
    return ", ".join(parts)
