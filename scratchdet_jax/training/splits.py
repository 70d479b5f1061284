"""Opens the splits of a run, and checks that they fit its config and each other."""

import ml_collections

from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.data.sources import check_slots, open_split
from scratchdet_jax.errors import UserError, plural


def open_splits(
    config: ml_collections.ConfigDict,
) -> tuple[DetectionSource, DetectionSource | None]:
    """Opens the training split and, if one is named, the evaluation split.

    Both have boxes, of the same classes. Data sets that the program can make or prepare itself are
    prepared at first use.

    Raises:
        UserError: a split cannot be opened, has no boxes, or does not fit the config or the other.
    """
    source = open_split(config.data, "train")
    source.require_boxes("config.data.train")
    eval_source = open_split(config.data, "eval") if config.data.eval else None
    if eval_source:
        eval_source.require_boxes("config.data.eval")
        _check_classes(source, eval_source)
    check_slots(config.data, {"train": source, "eval": eval_source})
    return source, eval_source


def check_batch_size(
    config: ml_collections.ConfigDict, source: DetectionSource, devices: int
) -> None:
    """Refuses a batch that would hold images of the training split twice."""
    if config.batch_size <= len(source):
        return
    part = devices * config.accumulate_steps
    largest = len(source) // part * part
    raise UserError(
        f"config.batch_size is {config.batch_size}, but config.data.train {source.spec} has only "
        f"{plural(len(source), 'image')}: "
        + (f"use at most {largest}" if largest else f"it needs at least {part} images")
    )


def _check_classes(train: DetectionSource, evaluation: DetectionSource) -> None:
    if train.class_names != evaluation.class_names:
        raise UserError(
            f"config.data.train {train.spec} has classes {', '.join(train.class_names)}, but "
            f"config.data.eval {evaluation.spec} has {', '.join(evaluation.class_names)}: they "
            "must be the same, in the same order"
        )
