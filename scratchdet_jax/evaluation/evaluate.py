"""Evaluates a trained run; shared by eval.py and the tools."""

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from scratchdet_jax.config.validation import validate
from scratchdet_jax.data.records import DetectionSource, parse_spec
from scratchdet_jax.data.sources import check_slots, chosen_on_test, open_split
from scratchdet_jax.errors import UserError, writable_folder
from scratchdet_jax.evaluation import coco, voc
from scratchdet_jax.evaluation.evaluator import Evaluation, Evaluator, summary_line
from scratchdet_jax.parallel import processes
from scratchdet_jax.parallel.devices import DeviceMapping
from scratchdet_jax.reports.baseline import constant_box
from scratchdet_jax.run.open import SavedRun, load_detector

_RESULTS = "results.json"


def evaluate_run(
    run: SavedRun, config: ml_collections.ConfigDict, output: Path | None = None
) -> Evaluation:
    """Scores a run on `config.data.eval` and writes results and detections to a folder.

    The files are results.json, coco_results.json and VOC's comp4_det_<split>_<class>.txt. Beside
    the run's own figures stands what a constant box scores (`baseline.constant_box`).

    Args:
        run: the checkpoint.
        config: the config of the run, possibly with overrides.
        output: the folder. None: the one of `default_folder`; results of another step in it are
            first set aside, in a folder named after that step.

    Raises:
        UserError: `output` holds other results, the config does not fit the run, an image of the
            split has more boxes than `config.data.max_boxes`, or the classes of the split are
            others than those of the run.
    """
    _check_same_detector(run, config)
    mapping, source = _opened(config)
    record = {"step": run.step, "data": source.spec, "metric": config.eval.metric}
    aside = None
    if output is None:
        output = default_folder(run, config, source.spec)
        aside = _free_name(output, record)
    elif _holds_others(output, record):
        other = _read_record(output)
        raise UserError(
            f"--output {output} holds the results of step {other['step']} on {other['data']} "
            f"({other['metric']}): name another folder or remove these results"
        )
    writable_folder(output, "--output")
    evaluation = _evaluated(run, config, mapping, source)
    if not processes.is_first():
        return evaluation
    scored = config.eval.metric != "none"
    figures = {**record, **evaluation.results}
    if scored:
        constant = constant_box(
            evaluation.ground_truth, evaluation.sizes, source.class_names, config.eval.metric
        )
        figures["constant_box"] = constant.record()
    if aside:
        output.rename(aside)
        output.mkdir()
    _write_files(figures, output, source, evaluation)

    for name, ap in evaluation.results["AP"].items():
        print(f"{name:>20}  {'no ground truth' if ap is None else f'{ap:.4f}'}")
    print(
        f"{run.workdir} step {run.step}{' (best)' * run.is_best} on {source.spec} "
        f"({len(source)} images): "
        f"{summary_line(evaluation.results) if scored else 'not scored'}"
    )
    own = run.info.config
    own_best = run.is_best and config.data.eval == own.data.eval
    if scored and own_best and (warning := chosen_on_test(own)):
        print(f"note: {warning}")
    if scored and (line := constant.line(evaluation.results["label"], len(source))):
        print(line)
    if left_out := source.left_out_line():
        print(left_out)
    moved = f"; the earlier results of another step are in {aside}" if aside else ""
    print(f"detections and results.json in {output}{moved}")
    return evaluation


def score_run(
    run: SavedRun, config: ml_collections.ConfigDict
) -> tuple[DetectionSource, Evaluation]:
    """Scores a run on `config.data.eval` as `evaluate_run` does, but writes and prints nothing.

    Raises:
        UserError: as for `evaluate_run`.
    """
    _check_same_detector(run, config)
    mapping, source = _opened(config)
    return source, _evaluated(run, config, mapping, source)


def _opened(config: ml_collections.ConfigDict) -> tuple[DeviceMapping, DetectionSource]:
    mapping = DeviceMapping(config.parallel)
    validate(config, mapping.mesh.size)
    source = open_split(config.data, "eval")
    check_slots(config.data, {"eval": source})
    return mapping, source


def _evaluated(
    run: SavedRun,
    config: ml_collections.ConfigDict,
    mapping: DeviceMapping,
    source: DetectionSource,
) -> Evaluation:
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
    return evaluator.evaluate(mapping.replicate(variables))


def default_folder(run: SavedRun, config: ml_collections.ConfigDict, spec: str) -> Path:
    """WORKDIR/eval for the run's best checkpoint on its own eval split, else a folder beside it.

    `spec` is that of the opened split. Another split, metric or checkpoint is part of the folder's
    name: eval-voc_2007_test, eval-voc_area, eval-step_50.
    """
    own = run.info.config
    parts = ["eval"]
    same = all(config.data[key] == own.data[key] for key in ("eval", "folder"))
    if own.data.eval and not same:
        parts.append(re.sub(r"[^\w+.-]+", "_", spec).strip("_")[:100])
    if config.eval.metric != own.eval.metric:
        parts.append(config.eval.metric)
    if not run.is_best:
        parts.append(f"step_{run.step}")
    return run.workdir / "-".join(parts)


def _read_record(folder: Path) -> dict[str, Any] | None:
    """The step, data and metric of the results in a folder; None without readable results."""
    try:
        content = json.loads((folder / _RESULTS).read_text(encoding="utf-8"))
        return {key: content[key] for key in ("step", "data", "metric")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _holds_others(folder: Path, record: Mapping[str, Any]) -> bool:
    return _read_record(folder) not in (None, record)


def _free_name(folder: Path, record: Mapping[str, Any]) -> Path | None:
    """The folder for what `folder` holds of another evaluation; None if there is nothing."""
    if not _holds_others(folder, record):
        return None
    base = f"{folder.name}-step_{_read_record(folder)['step']}"
    names = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2)))
    return next(path for path in map(folder.with_name, names) if not path.exists())


def _write_files(
    figures: Mapping[str, Any], output: Path, source: DetectionSource, evaluation: Evaluation
) -> None:
    """Writes the figures first, the VOC files, whose names depend on the classes, last."""
    (output / _RESULTS).write_text(json.dumps(figures, indent=2) + "\n")
    categories = source.category_ids or coco.submission_category_ids(source.class_names)
    coco.write_results(output / "coco_results.json", evaluation.detections, categories)
    split = split_name(source.spec)
    voc.write_detections(output, evaluation.detections, source.class_names, split)
    if line := voc.escaped_line(split, source.class_names):
        print(line)


def split_name(spec: str) -> str:
    """Returns the devkit's name of a split for detection files: val, test, trainval."""
    splits = dict.fromkeys(part.split for part in parse_spec(spec))
    name = re.sub(r"[^\w+.-]+", "_", "+".join(splits)).strip("_")
    return voc.DEVKIT_SPLITS.get(name, name)


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
