"""The runs of a report: opened, and each evaluated once."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ml_collections

from scratchdet_jax.config.defaults import with_defaults
from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation import coco
from scratchdet_jax.evaluation.saved_run import evaluate_on, open_eval_split
from scratchdet_jax.reports.curves import run_names
from scratchdet_jax.reports.tide import analyse
from scratchdet_jax.run.open import SavedRun, open_run, split_run


class OpenedRun(NamedTuple):
    """A run before its evaluation: its name in the report, and the config with which to score."""

    name: str
    run: SavedRun
    config: ml_collections.ConfigDict


def open_runs(
    texts: Sequence[str], split: str | None = None, data_dir: str | None = None
) -> list[OpenedRun]:
    """Opens the runs of a command line.

    `texts` are WORKDIR or WORKDIR@CHECKPOINT. `split` and `data_dir` replace the fields of
    `config.data`.

    Raises:
        UserError: a run or checkpoint does not exist or is named twice, or a run has no eval split.
    """
    places = [split_run(text) for text in texts]
    folders = [folder for folder, _ in places]
    names = dict(zip(dict.fromkeys(folders), run_names(list(dict.fromkeys(folders))), strict=True))
    opened: list[OpenedRun] = []
    for folder, checkpoint in places:
        run = open_run(folder, checkpoint)
        name = names[folder] + (f"@{run.step}" if folders.count(folder) > 1 else "")
        if any(other.name == name for other in opened):
            raise UserError(f"step {run.step} of {folder} is given twice: name each run once")
        opened.append(OpenedRun(name, run, _config(run, folder, split, data_dir)))
    return opened


def _config(
    run: SavedRun, folder: Path, split: str | None, data_dir: str | None
) -> ml_collections.ConfigDict:
    config = with_defaults(run.info.config)
    with config.unlocked():
        config.data.eval = split or config.data.eval
        config.data.dir = data_dir or config.data.dir
        if config.eval.metric == "none":
            config.eval.metric = "voc_area"
    if not config.data.eval:
        raise UserError(f"{folder} was trained without an eval split: name one with --split")
    return config


class RunStudy:
    """A run on a split; the input of every section.

    Attributes:
        name: of the run in the report.
        run: the checkpoint.
        config: the one of the evaluation.
        threshold: lowest score of a detection in the confusion matrix and the pictures.
        source: the split.
        class_names: label i is class_names[i − 1].
        evaluation: as `eval.py` computes it.
        coco: COCO's metrics by name, whatever the metric of the run; None where undefined.
        strict: COCO's AP by class.
        analysis: what became of every detection, by TIDE.
    """

    def __init__(self, opened: OpenedRun, threshold: float) -> None:
        """Evaluates the run.

        Raises:
            UserError: see `open_eval_split`.
        """
        self.name, self.run, self.config = opened
        self.threshold = threshold
        mapping, self.source = open_eval_split(self.run, self.config)
        self.evaluation = evaluate_on(self.run, self.config, mapping, self.source)
        self.class_names = self.source.class_names
        results = self.evaluation.results
        found, truth = self.evaluation.detections, self.evaluation.ground_truth
        if self.config.eval.metric != "coco":
            results = coco.evaluate(found, truth, self.class_names).record()
        self.coco = {name: results["mAP" if name == "AP" else name] for name in coco.METRICS}
        self.strict = results["AP"]
        self.analysis = analyse(found, truth, len(self.class_names))
