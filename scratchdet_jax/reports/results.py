"""Writes and prints the results of an evaluation (the command `eval`)."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.data.sources import chosen_on_test
from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation import formats
from scratchdet_jax.evaluation.evaluator import Evaluation, summary_line
from scratchdet_jax.evaluation.saved_run import evaluate_on, open_eval_split
from scratchdet_jax.files import writable_folder, write_text_atomically
from scratchdet_jax.parallel import processes
from scratchdet_jax.reports.baseline import ConstantBox, constant_box
from scratchdet_jax.run.open import SavedRun

_RESULTS = "results.json"


def evaluate_run(
    run: SavedRun,
    config: ml_collections.ConfigDict,
    output: Path | None = None,
    overwrite: bool = False,
) -> Evaluation:
    """Scores a run on `config.data.eval` and writes results and detections to a folder.

    The files are results.json, coco_results.json and VOC's comp4_det_<split>_<class>.txt. Beside
    the run's own figures stands what a constant box scores (`baseline.constant_box`).

    `output`: the folder; by default that of `default_folder`, which belongs to the run: its results
    are replaced. `overwrite`: replace other results in `output`.

    Raises:
        UserError: `output` holds the results of another step, split or metric, or an error of
            `open_eval_split`.
    """
    mapping, source = open_eval_split(run, config)
    record = {"step": run.step, "data": source.spec, "metric": config.eval.metric}
    replace = output is None or overwrite
    output = default_folder(run, config, source.spec) if output is None else output
    _check_results(output, record, replace)
    writable_folder(output, "--output")
    evaluation = evaluate_on(run, config, mapping, source)
    if not processes.is_first():
        return evaluation
    constant = None
    if config.eval.metric != "none":
        constant = constant_box(
            evaluation.ground_truth, evaluation.sizes, source.class_names, config.eval.metric
        )
    figures = {**record, **evaluation.results}
    if constant:
        figures["constant_box"] = constant.record()
    # The names of the VOC files depend on the classes, so they are written last.
    write_text_atomically(output / _RESULTS, json.dumps(figures, indent=2) + "\n")
    categories = source.category_ids or formats.category_ids(source.class_names)
    formats.write_coco(output / "coco_results.json", evaluation.detections, categories)
    split = formats.split_name(source.spec)
    formats.write_voc(output, evaluation.detections, source.class_names, split)
    _print_results(run, config, source, evaluation.results, constant)
    print(f"detections and results.json in {output}")
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


def _check_results(output: Path, record: Mapping[str, Any], replace: bool) -> None:
    """Refuses a folder with the results of another evaluation than `record`, or names them."""
    try:
        content = json.loads((output / _RESULTS).read_text(encoding="utf-8"))
        other = {key: content[key] for key in record}
    except (OSError, ValueError, KeyError, TypeError):
        return  # no readable results
    results = f"the results of step {other['step']} on {other['data']} ({other['metric']})"
    if other != record and not replace:
        raise UserError(
            f"--output {output} holds {results}: name another folder, remove these results, or add "
            "--overwrite"
        )
    if other != record and processes.is_first():
        print(f"note: {results} in {output} are replaced")


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
