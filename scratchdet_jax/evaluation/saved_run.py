"""Evaluates the checkpoint of a run on a split."""

import ml_collections

from scratchdet_jax.config.validation import validate
from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.data.sources import check_slots, open_split
from scratchdet_jax.errors import UserError
from scratchdet_jax.evaluation.evaluator import Evaluation, Evaluator
from scratchdet_jax.parallel.devices import DeviceMapping
from scratchdet_jax.run.open import SavedRun, load_detector


def open_eval_split(
    run: SavedRun, config: ml_collections.ConfigDict
) -> tuple[DeviceMapping, DetectionSource]:
    """Checks a config against a run and opens its `config.data.eval`; loads no weights.

    Raises:
        UserError: the config does not fit the run, an image of the split has more boxes than
            `config.data.max_boxes`, or the split has other classes than the run.
    """
    _check_same_detector(run, config)
    mapping = DeviceMapping(config.parallel)
    validate(config, mapping.mesh.size)
    source = open_split(config.data, "eval")
    check_slots(config.data, "eval", source)
    if config.eval.metric != "none":
        source.require_boxes("config.data.eval")
    check_classes(run, source)
    return mapping, source


def check_classes(run: SavedRun, source: DetectionSource) -> None:
    """Raises UserError unless a split has the classes of a run, in the same order."""
    if source.class_names != run.info.class_names:
        raise UserError(
            f"{run.workdir} was trained on the classes {', '.join(run.info.class_names)}, but "
            f"{source.spec} has {', '.join(source.class_names)}: choose a split with the same "
            "classes in the same order"
        )


def evaluate_on(
    run: SavedRun,
    config: ml_collections.ConfigDict,
    mapping: DeviceMapping,
    source: DetectionSource,
) -> Evaluation:
    """Loads the weights of a run and evaluates them on the split of `open_eval_split`."""
    detector, variables = load_detector(run, config)
    evaluator = Evaluator(detector, mapping, source)
    return evaluator.evaluate(mapping.replicate(variables))


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
