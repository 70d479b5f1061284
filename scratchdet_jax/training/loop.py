"""The whole of training, from a config to a trained detector."""

from collections.abc import Iterator
from pathlib import Path

import jax
import ml_collections
import numpy as np

from configs.common import with_defaults
from scratchdet_jax.data.loading import to_device, train_batches
from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.data.sources import open_split
from scratchdet_jax.detector import Detector, build_detector
from scratchdet_jax.errors import UserError, writable_folder
from scratchdet_jax.evaluation.evaluator import Evaluator, summary_line
from scratchdet_jax.models.ssd import backbone_name
from scratchdet_jax.training.checkpoints import IMPORTED, Checkpoints, Recipe
from scratchdet_jax.training.init_from import init_from_run
from scratchdet_jax.training.logging import MetricLogger
from scratchdet_jax.training.optimizer import make_optimizer, number_of_steps
from scratchdet_jax.training.parallel import DeviceMapping
from scratchdet_jax.training.state import TrainState, create_state
from scratchdet_jax.training.step import AXIS, make_train_step
from scratchdet_jax.validation import get, validate

# What a resumed run must have in common with its beginning.
FIXED_ON_RESUME = (
    "seed", "image_size", "batch_size", "accumulate_steps", "data.train", "normalize", "augment",
    "model", "anchors", "loss",
)  # fmt: skip


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: Path) -> TrainState:
    """Trains, evaluates and checkpoints; resumes if ``workdir`` holds a checkpoint.

    Args:
      config: a recipe's config (configs/common.py says what each field means).
      workdir: where checkpoints, metrics.jsonl and TensorBoard events go.

    Returns:
      The final state.

    Raises:
      UserError: a config, data set or file is wrong, or training diverged.
    """
    # Before anything is built: can this run at all?
    writable_folder(workdir, "--workdir")
    _refuse_imported(workdir)
    mapping = DeviceMapping(config.parallel)
    validate(config, mapping.mesh.size)
    num_steps = number_of_steps(config)
    source, eval_source = _open_data(config)

    # What is there already? A run of something else is refused before anything is built.
    checkpoints = Checkpoints(workdir, config.keep_checkpoints)
    recipe = Recipe(config, source.class_names)
    start = checkpoints.latest_step or 0
    if start:
        _check_resume(checkpoints.recipe(start), recipe, workdir)

    # The model and its state; the step says which examples and random numbers come next.
    detector = build_detector(config, source.class_names, AXIS)
    evaluator = Evaluator(config, detector, mapping, eval_source) if eval_source else None
    optimizer = make_optimizer(config)
    state = mapping.replicate(
        create_state(detector.model, optimizer, config.image_size, config.seed)
    )
    _introduce(config, workdir, mapping, source, detector, state)
    if start:
        state = checkpoints.restore(start, like=state)
        print(f"resumed from step {start} of {num_steps}")
    elif config.init_from:
        variables = init_from_run(
            config.init_from, config, detector, jax.device_get(state.variables)
        )
        state = state.replace(**mapping.replicate(variables))
    if start >= num_steps:
        print("nothing is left to train")

    # The loop.
    train_step = mapping.map_train_step(make_train_step(config, detector, optimizer))
    logger = MetricLogger(
        workdir, start_step=start, num_steps=num_steps, batch_size=config.batch_size,
        log_every=config.log_every,
    )  # fmt: skip
    batches = _device_batches(config, source, mapping, start)
    try:
        for step in range(start + 1, num_steps + 1):
            state, metrics = train_step(state, next(batches))
            logger.log_step(step, metrics)
            last = step == num_steps
            evaluate = evaluator and (last or _due(step, config.eval.every_steps))
            if evaluate or last or _due(step, config.checkpoint_every):
                logger.flush()  # a checkpoint is only written of a step known to be finite
                with logger.paused():
                    score = None
                    if evaluate:
                        results = evaluator.evaluate(state.variables).results
                        score = results["mAP"]
                        logger.log_evaluation(step, results)
                        print(f"\nstep {step}: {summary_line(results)}")
                    checkpoints.save(step, state, recipe, score)
    finally:
        batches.close()
        logger.close()
        checkpoints.close()
        for data in filter(None, (source, eval_source)):
            if left_out := data.left_out_line():
                print(left_out)
    return state


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _device_batches(
    config: ml_collections.ConfigDict, source: DetectionSource, mapping: DeviceMapping, start: int
) -> Iterator[dict[str, jax.Array]]:
    """Batches [accumulate_steps, B, …] on the devices, from update ``start`` on.

    The loader delivers the parts of an update's batch one after the other, so part i holds the
    same examples whatever the number of devices.
    """
    parts = config.accumulate_steps
    loader = train_batches(
        source, batch_size=config.batch_size // parts, canvas=config.data.canvas,
        max_boxes=config.data.max_boxes, seed=config.seed, start_step=start * parts,
        threads=config.data.threads, process_index=jax.process_index(),
        process_count=jax.process_count(),
    )  # fmt: skip

    def stacked() -> Iterator[dict[str, np.ndarray]]:
        try:
            while True:
                group = [next(loader) for _ in range(parts)]
                # A single part is not copied again.
                stack = np.stack if parts > 1 else lambda arrays: arrays[0][None]
                yield {key: stack([part[key] for part in group]) for key in group[0]}
        finally:
            loader.close()

    return to_device(stacked(), mapping.put_batch)


def _refuse_imported(workdir: Path) -> None:
    if (workdir / IMPORTED).exists():
        raise UserError(
            f"{workdir} holds imported weights, which a run begins from, not goes on with: add "
            f"--config.init_from={workdir} and choose another --workdir"
        )


def _open_data(
    config: ml_collections.ConfigDict,
) -> tuple[DetectionSource, DetectionSource | None]:
    """The training split and the one to evaluate on, if any: with boxes, of the same classes."""
    source = open_split(config.data, "train")
    source.require_boxes("config.data.train")
    eval_source = open_split(config.data, "eval") if config.data.eval else None
    if eval_source:
        eval_source.require_boxes("config.data.eval")
    _check_classes(source, eval_source)
    return source, eval_source


def _check_classes(train: DetectionSource, evaluation: DetectionSource | None) -> None:
    if evaluation is not None and train.class_names != evaluation.class_names:
        raise UserError(
            f"config.data.train {train.spec} has classes {', '.join(train.class_names)}, but "
            f"config.data.eval {evaluation.spec} has {', '.join(evaluation.class_names)}: they "
            "must be the same, in the same order"
        )


def _check_resume(saved: Recipe, now: Recipe, workdir: Path) -> None:
    if saved.class_names != now.class_names:
        raise UserError(
            f"{workdir} holds a run on the classes {', '.join(saved.class_names)}, not "
            f"{', '.join(now.class_names)}: choose a new --workdir"
        )
    configs = (with_defaults(saved.config), now.config)
    for name in FIXED_ON_RESUME:
        before, after = (_plain(get(config, name)) for config in configs)
        if before != after:
            raise UserError(
                f"{workdir} holds a run of another config.{name} ({before}, not {after}): choose "
                "a new --workdir, or give the same value again"
            )


def _plain(value: object) -> object:
    return value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value


def _introduce(
    config: ml_collections.ConfigDict, workdir: Path, mapping: DeviceMapping,
    source: DetectionSource, detector: Detector, state: TrainState,
) -> None:  # fmt: skip
    """Says in a few lines what is about to happen."""
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    device = mapping.mesh.devices.flat[0].device_kind
    print(
        f"{config.name}: {number_of_steps(config)} updates of {config.batch_size} images from "
        f"{source.spec} ({len(source)} images, {len(source.class_names)} classes)\n"
        f"{backbone_name(config.model)}: {parameters:,} parameters, "
        f"{len(detector.anchors):,} anchors at {config.image_size} px\n"
        f"{mapping.mesh.size} x {device}, {config.parallel}; results in {workdir}"
    )
