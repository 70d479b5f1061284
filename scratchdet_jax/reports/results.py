"""Writes and prints the results of an evaluation (the command `eval`)."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.data.sources import chosen_on_test
from scratchdet_jax.datasets.untrusted import printable
from scratchdet_jax.errors import UserError, writable_folder
from scratchdet_jax.evaluation import coco, voc
from scratchdet_jax.evaluation.evaluator import Evaluation, summary_line
from scratchdet_jax.evaluation.saved_run import evaluate_on, open_eval_split
from scratchdet_jax.parallel import processes
from scratchdet_jax.reports.baseline import ConstantBox, constant_box
from scratchdet_jax.run.open import SavedRun

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
        UserError: `output` holds other results, or an error of `open_eval_split`.
    """
    mapping, source = open_eval_split(run, config)
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
    evaluation = evaluate_on(run, config, mapping, source)
    if not processes.is_first():
        return evaluation
    constant = None
    if config.eval.metric != "none":
        constant = constant_box(
            evaluation.ground_truth, evaluation.sizes, source.class_names, config.eval.metric
        )
    if aside:
        output.rename(aside)
        output.mkdir()
    figures = {**record, **evaluation.results}
    if constant:
        figures["constant_box"] = constant.record()
    _write_files(figures, output, source, evaluation)
    _print_results(run, config, source, evaluation.results, constant)
    moved = f"; the earlier results of another step are in {aside}" if aside else ""
    print(f"detections and results.json in {output}{moved}")
    return evaluation


def default_folder(run: SavedRun, config: ml_collections.ConfigDict, spec: str) -> Path:
    """Returns WORKDIR/eval for the run's best checkpoint on its own eval split.

    Another split, metric or checkpoint has a folder beside it and is part of its name:
    eval-voc_2007_test, eval-voc_area, eval-step_50. `spec` is that of the opened split.
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
    split = voc.split_name(source.spec)
    voc.write_detections(output, evaluation.detections, source.class_names, split)
    if line := escaped_line(split, source.class_names):
        print(line)


def escaped_line(split: str, class_names: Sequence[str]) -> str | None:
    """Returns one line about the classes whose VOC file has another name; None without any."""
    names = [
        f"{printable(repr(name))}: {printable(file)}"
        for name in class_names
        if (file := voc.detections_file(".", split, name).name) != f"comp4_det_{split}_{name}.txt"
    ]
    if not names:
        return None
    more = f" and {len(names) - 3} more" * (len(names) > 3)
    return f"class names that cannot be file names are escaped: {', '.join(names[:3])}{more}"


def _print_results(
    run: SavedRun,
    config: ml_collections.ConfigDict,
    source: DetectionSource,
    results: Mapping[str, Any],
    constant: ConstantBox | None,
) -> None:
    """Prints AP by class, mAP, and what is to be known about it."""
    for name, ap in results["AP"].items():
        print(f"{name:>20}  {'no ground truth' if ap is None else f'{ap:.4f}'}")
    print(
        f"{run.workdir} step {run.step}{' (best)' * run.is_best} on {source.spec} "
        f"({len(source)} images): {summary_line(results) if constant else 'not scored'}"
    )
    own = run.info.config
    own_best = run.is_best and config.data.eval == own.data.eval
    if constant and own_best and (warning := chosen_on_test(own)):
        print(f"note: {warning}")
    if constant and (line := constant.line(results["label"], len(source))):
        print(line)
    if left_out := source.left_out_line():
        print(left_out)
