"""Evaluates a trained run; shared by eval.py and the tools."""

import json
import re
from pathlib import Path

import ml_collections

from scratchdet_jax.config.validation import validate
from scratchdet_jax.data.records import parse_spec
from scratchdet_jax.data.sources import open_split
from scratchdet_jax.errors import UserError, writable_folder
from scratchdet_jax.evaluation import coco, voc
from scratchdet_jax.evaluation.evaluator import Evaluation, Evaluator, summary_line
from scratchdet_jax.parallel import processes
from scratchdet_jax.parallel.devices import DeviceMapping
from scratchdet_jax.run.open import SavedRun, load_detector


def evaluate_run(run: SavedRun, config: ml_collections.ConfigDict, output: Path) -> Evaluation:
    """Scores a run on `config.data.eval` and writes results and detections to `output`.

    The files are results.json, coco_results.json and VOC's comp4_det_<split>_<class>.txt.
    """
    writable_folder(output, "--output")
    _check_same_detector(run, config)
    mapping = DeviceMapping(config.parallel)
    validate(config, mapping.mesh.size)
    source = open_split(config.data, "eval")
    if config.eval.metric != "none":
        source.require_boxes("config.data.eval")
    if source.class_names != run.info.class_names:
        raise UserError(
            f"{run.workdir} was trained on the classes {', '.join(run.info.class_names)}, but "
            f"config.data.eval {source.spec} has {', '.join(source.class_names)}: choose a split "
            "with the same classes in the same order"
        )
    detector, variables = load_detector(run, config)
    evaluator = Evaluator(detector, mapping, source)
    evaluation = evaluator.evaluate(mapping.replicate(variables))

    if not processes.is_first():
        return evaluation
    split = split_name(source.spec)
    voc.write_detections(output, evaluation.detections, detector.class_names, split)
    categories = source.category_ids or coco.submission_category_ids(detector.class_names)
    coco.write_results(output / "coco_results.json", evaluation.detections, categories)
    record = {"step": run.step, "data": source.spec, "metric": config.eval.metric}
    (output / "results.json").write_text(json.dumps(record | evaluation.results, indent=2) + "\n")

    for name, ap in evaluation.results["AP"].items():
        print(f"{name:>20}  {'no ground truth' if ap is None else f'{ap:.4f}'}")
    scored = config.eval.metric != "none"
    print(
        f"{run.workdir} step {run.step} on {source.spec} ({len(source)} images): "
        f"{summary_line(evaluation.results) if scored else 'not scored'}"
    )
    if left_out := source.left_out_line():
        print(left_out)
    print(f"detections and results.json in {output}")
    return evaluation


def split_name(spec: str) -> str:
    """Returns the devkit's name of a split for detection files: val, test, trainval."""
    splits = dict.fromkeys(part.split for part in parse_spec(spec))
    name = re.sub(r"[^\w+.-]+", "_", "+".join(splits)).strip("_")
    return {"validation": "val", "train+validation": "trainval"}.get(name, name)


def _check_same_detector(run: SavedRun, config: ml_collections.ConfigDict) -> None:
    """Refuses a model or anchors that differ from those the run was trained with."""
    trained = run.info.config
    free = ("dtype", "norm_span")
    for group in ("model", "anchors"):
        for name, value in config[group].items():
            if name not in free and value != trained[group][name]:
                raise UserError(
                    f"config.{group}.{name} is {value!r}, but {run.workdir} was trained with "
                    f"{trained[group][name]!r}: remove the override"
                )
