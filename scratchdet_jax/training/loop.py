"""Trains, evaluates and checkpoints: from a config to a trained detector."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections

from scratchdet_jax import stopping
from scratchdet_jax.config.fields import number_of_steps, run_ends
from scratchdet_jax.config.validation import validate
from scratchdet_jax.data.loading import substituted_line, substitutes, to_device, train_loader
from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.data.sources import NO_EVALUATION, check_slots, chosen_on_test, open_split
from scratchdet_jax.detector import Detector, build_detector
from scratchdet_jax.errors import UserError, plural, writable_folder
from scratchdet_jax.evaluation.evaluator import Evaluator, summary_line
from scratchdet_jax.models.ssd import backbone_name
from scratchdet_jax.parallel import processes
from scratchdet_jax.parallel.devices import AXIS, DeviceMapping
from scratchdet_jax.progress import say
from scratchdet_jax.run.checkpoints import IMPORTED, Checkpoints, RunInfo
from scratchdet_jax.run.metrics import Diverged, MetricLogger
from scratchdet_jax.run.replay import save_replay
from scratchdet_jax.run.state import TrainState, create_state
from scratchdet_jax.run.watchdog import Watchdog
from scratchdet_jax.run.workdir import check_resume, locked
from scratchdet_jax.training.early_stop import Improvement
from scratchdet_jax.training.init_from import init_from_run
from scratchdet_jax.training.optimizer import make_optimizer, make_schedule
from scratchdet_jax.training.step import make_train_step


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: Path, resume: str = "auto"
) -> TrainState:
    """Trains, evaluates and checkpoints; resumes if `workdir` holds a checkpoint.

    Args:
        config: a recipe's config (scratchdet_jax/config/defaults.py explains every field).
        workdir: where checkpoints, metrics.jsonl and TensorBoard events go.
        resume: "auto" refuses a workdir of another config; "force" resumes it anyway.

    Returns:
        The final state.

    Raises:
        UserError: a config, data set or file is wrong, training diverged, or the last checkpoint
            could not be written.
        Stopped: SIGTERM or Ctrl-C came; all finished steps are saved.
    """
    writable_folder(workdir, "--workdir")
    _refuse_imported(workdir)
    use_compilation_cache(config.compilation_cache)
    alone = locked(workdir) if processes.is_first() else contextlib.nullcontext()
    command = stopping.of_command()
    with alone, contextlib.nullcontext(command) if command else stopping.Stop() as stop:
        return _train(config, workdir, resume == "force", stop)


def use_compilation_cache(folder: str) -> None:
    """Keeps compiled programs in `folder` (`config.compilation_cache`); empty: keeps none."""
    if folder:
        path = writable_folder(Path(folder).expanduser(), "config.compilation_cache")
        jax.config.update("jax_compilation_cache_dir", str(path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


class _Loop(NamedTuple):
    """What the loop over the steps needs."""

    config: ml_collections.ConfigDict
    workdir: Path
    mapping: DeviceMapping
    source: DetectionSource
    evaluator: Evaluator | None
    info: RunInfo
    checkpoints: Checkpoints
    logger: MetricLogger
    watchdog: Watchdog
    stop: stopping.Stop


def _train(
    config: ml_collections.ConfigDict, workdir: Path, force: bool, stop: stopping.Stop
) -> TrainState:
    # Can this config run at all?
    mapping = DeviceMapping(config.parallel)
    validate(config, mapping.mesh.size)
    num_steps = number_of_steps(config)
    source, eval_source = processes.together(lambda: _open_data(config), first_alone=True)

    # Does the workdir hold a checkpoint, and is it one of this config?
    processes.check_shared(workdir, "--workdir")
    checkpoints = Checkpoints(workdir, config.keep_checkpoints)
    info = RunInfo(config, source.class_names)
    start = checkpoints.newest_sound_step() or 0
    if not start:
        _check_batch_size(config, source, mapping.mesh.size)
    else:
        saved = checkpoints.info(start)
        processes.together(lambda: check_resume(saved, info, workdir, force))

    detector = build_detector(config, source.class_names, AXIS)
    optimizer = make_optimizer(config)

    def fresh_state() -> TrainState:
        averaged = config.ema_decay > 0
        return create_state(detector.model, optimizer, config.image_size, config.seed, averaged)

    if start:
        state = checkpoints.restore(start, like=mapping.shapes(fresh_state))
    else:
        state = mapping.replicate(processes.from_first(fresh_state()))
    # The last evaluation may have been interrupted; it comes before the next step.
    evaluates = eval_source is not None
    scored = bool(start) and checkpoints.is_scored(start)
    owed = bool(start) and _due(config, evaluates, start) and not scored
    progress = checkpoints.progress(start) if start else None
    improvement = Improvement.from_json(progress)
    if scored:  # the checkpoint was written before its evaluation
        improvement = improvement.after(checkpoints.score(start))
    if (start >= num_steps or improvement.ends(config.eval.stop_after)) and not owed:
        all_of = "all " if start >= num_steps else ""
        print(f"nothing is left to train: {workdir} has {all_of}{start} steps")
        print(_finish(workdir, checkpoints, evaluates, num_steps, improvement))
        checkpoints.close()
        return state

    _introduce(workdir, mapping, source, detector, state)
    if start:
        print(f"resumed from step {start} of {num_steps}")
        if start in run_ends(config)[:-1]:
            before, now = (float(make_schedule(config)(step)) for step in (start - 1, start))
            print(f"extended: the learning rate goes from {before:.3g} to {now:.3g}")
    elif config.init_from:
        variables = init_from_run(config.init_from, detector, jax.device_get(state.variables))
        state = state.starting_from(mapping.replicate(variables))
    evaluator = Evaluator(detector, mapping, eval_source) if evaluates else None

    train_step = mapping.map_train_step(make_train_step(detector, optimizer))
    logger = MetricLogger(
        workdir,
        start_step=start,
        num_steps=num_steps,
        batch_size=config.batch_size,
        log_every=config.log_every,
        progress=progress,
        evaluated=not owed,
    )
    watchdog = Watchdog(config.stall_seconds, workdir)
    substituted = substitutes(config)
    batches = _device_batches(config, source, mapping, start, substituted)
    run = _Loop(
        config, workdir, mapping, source, evaluator, info, checkpoints, logger, watchdog, stop
    )
    with stop.deferred():
        try:
            if owed:
                improvement = improvement.after(_evaluate(run, start, state))
            state, end, improvement = _steps(
                run, train_step, state, batches, start, num_steps, improvement
            )
        finally:
            watchdog.close()
            batches.close()
            logger.close()
            checkpoints.close()
            notes = [data.left_out_line() for data in (source, eval_source) if data]
            for line in filter(None, [*notes, substituted_line(source, substituted or {})]):
                print(line)
    if start < end:
        _require_last_checkpoint(workdir, checkpoints, end)
    print(_finish(workdir, checkpoints, evaluates, num_steps, improvement))
    return state


def _steps(
    run: _Loop,
    train_step: Callable,
    state: TrainState,
    batches: Iterator[Any],
    start: int,
    num_steps: int,
    improvement: Improvement,
) -> tuple[TrainState, int, Improvement]:
    """Runs updates `start + 1` to `num_steps`; a request to stop takes effect between two.

    Returns:
        The state, the last step (lower than `num_steps` after early stopping), and what the
        evaluations have shown.
    """
    step, ends = start, run_ends(run.config)
    try:
        for step in range(start + 1, num_steps + 1):
            if improvement.ends(run.config.eval.stop_after):
                return state, step - 1, improvement
            with run.logger.waiting():
                batch = next(batches)
            if step == start + 1:
                train_step = _compile(run, train_step, state, batch)
            state, metrics = train_step(state, batch)
            run.logger.log_step(step, metrics)
            run.watchdog.beat(step - 1)  # log_step has waited for its end
            evaluate = _due(run.config, run.evaluator is not None, step)
            leave = run.stop.requested()
            if leave or evaluate or step in ends or _every(step, run.config.checkpoint_every):
                run.logger.flush()  # a step is only checkpointed if it is known to be finite
                with run.logger.paused(), run.watchdog.paused():
                    progress = run.logger.progress() | {"improvement": improvement}
                    run.checkpoints.save(step, state, run.info, progress=progress)
                    if leave:
                        print(_saved(run, step), file=sys.stderr)
                        raise run.stop.error()
                if evaluate:
                    improvement = improvement.after(_evaluate(run, step, state))
    except Diverged as error:
        raise _diverged(run, error, state) from None
    return state, step, improvement


def _compile(run: _Loop, train_step: Callable, state: TrainState, batch: Any) -> Callable:
    """Compiles the step, which may take minutes; nothing is lost if that is interrupted."""
    print("compiling the training step", file=sys.stderr)

    def nothing_lost() -> str:
        return f"stopped by {run.stop.name} while compiling: run the same command to resume"

    with run.stop.interruptible(nothing_lost), run.logger.paused():
        return run.mapping.compile(train_step, state, batch)


def _evaluate(run: _Loop, step: int, state: TrainState) -> float | None:
    """The mAP of a state whose checkpoint is written or being written: it may be interrupted."""

    def on_batch() -> None:
        run.watchdog.beat()
        run.stop.poll()

    with run.stop.interruptible(lambda: _saved(run, step)), run.logger.paused():
        evaluation = run.evaluator.evaluate(state.result, on_batch)
    results = evaluation.results
    run.logger.log_evaluation(step, results)
    say(f"step {step}: {summary_line(results)}")
    with run.watchdog.paused():
        run.checkpoints.set_score(step, results["mAP"])
        if count := run.config.eval.log_pictures:
            with run.logger.paused():
                run.logger.log_pictures(step, run.evaluator.pictures(evaluation, count))
    return results["mAP"]


def _saved(run: _Loop, step: int) -> str:
    """Waits until all that is saved is on the disk; returns the sentence that says so."""
    run.checkpoints.wait()
    run.logger.sync()
    saved = run.checkpoints.latest_step
    return (
        f"stopped by {run.stop.name} after step {step}; saved up to step {saved}: run the same "
        "command to resume"
    )


def _diverged(run: _Loop, error: Diverged, state: TrainState) -> UserError:
    """Saves the step for replay; returns the error that names the file and the images."""
    try:
        path, ids = save_replay(
            run.workdir, error.step, error.quantity, run.info, run.source, state
        )
    except (OSError, UserError) as failure:
        return UserError(f"{error}; its batch could not be saved for replay ({failure})")
    return UserError(
        f"{error}. The batch ({', '.join(ids)}) and the state before the step are in {path}: "
        f"python -m scratchdet_jax.tools.replay --workdir={run.workdir} shows what is not finite"
    )


def _due(config: ml_collections.ConfigDict, evaluates: bool, step: int) -> bool:
    """Whether a run that evaluates does so after `step`."""
    complete = step in run_ends(config)
    return evaluates and (complete or _every(step, config.eval.every_steps))


def _every(step: int, period: int) -> bool:
    return period > 0 and step % period == 0


def _require_last_checkpoint(workdir: Path, checkpoints: Checkpoints, num_steps: int) -> None:
    if checkpoints.latest_step != num_steps:
        raise UserError(
            f"training is complete, but its last checkpoint could not be written to {workdir}: "
            "free disk space and run the same command again; it repeats the steps since the "
            "previous checkpoint"
        )


def _finish(
    workdir: Path,
    checkpoints: Checkpoints,
    evaluates: bool,
    num_steps: int,
    improvement: Improvement,
) -> str:
    """What was reached, and the commands that come next."""
    best, last = checkpoints.best_step, checkpoints.latest_step
    reached = f"trained {last} steps"
    if last < num_steps:
        reached = (
            f"stopped early, after {last} of {num_steps} steps: no better mAP in "
            f"{plural(improvement.since, 'evaluation')} (config.eval.stop_after; 0 continues)"
        )
    if evaluates and (score := checkpoints.score(best)) is not None:
        reached += f"; best mAP {score:.4f} at step {best}"
    return (
        f"{reached}\n"
        f"next: python eval.py --workdir={workdir}\n"
        f"      python -m scratchdet_jax.tools.predict --workdir={workdir} "
        f"--output={workdir / 'pictures'} [IMAGE …]"
    )


def _device_batches(
    config: ml_collections.ConfigDict,
    source: DetectionSource,
    mapping: DeviceMapping,
    start: int,
    substituted: dict[int, str] | None,
) -> Iterator[dict[str, jax.Array]]:
    """Yields the batches [accumulate_steps, B, …] of the updates after `start`, on the devices."""
    loader = train_loader(
        config,
        source,
        start_step=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        substituted=substituted,
    )
    return to_device(loader, mapping.put_batch)


def _refuse_imported(workdir: Path) -> None:
    if (workdir / IMPORTED).exists():
        raise UserError(
            f"{workdir} holds imported weights and cannot be resumed: start from it with "
            f"--config.init_from={workdir} and another --workdir"
        )


def _open_data(config: ml_collections.ConfigDict) -> tuple[DetectionSource, DetectionSource | None]:
    """Opens the training split and, if one is named, the evaluation split.

    Both have boxes, of the same classes. Data sets that the program can make or prepare itself are
    prepared at first use.
    """
    source = open_split(config.data, "train")
    source.require_boxes("config.data.train")
    eval_source = open_split(config.data, "eval") if config.data.eval else None
    if eval_source:
        eval_source.require_boxes("config.data.eval")
    _check_classes(source, eval_source)
    check_slots(config.data, {"train": source, "eval": eval_source})
    return source, eval_source


def _check_batch_size(
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


def _check_classes(train: DetectionSource, evaluation: DetectionSource | None) -> None:
    if evaluation is not None and train.class_names != evaluation.class_names:
        raise UserError(
            f"config.data.train {train.spec} has classes {', '.join(train.class_names)}, but "
            f"config.data.eval {evaluation.spec} has {', '.join(evaluation.class_names)}: they "
            "must be the same, in the same order"
        )


def _introduce(
    workdir: Path,
    mapping: DeviceMapping,
    source: DetectionSource,
    detector: Detector,
    state: TrainState,
) -> None:
    """Prints what is about to run."""
    config = detector.config
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    device = mapping.mesh.devices.flat[0].device_kind
    print(
        f"{config.name}: {number_of_steps(config)} updates of {config.batch_size} images from "
        f"{source.spec} ({len(source)} images, {len(source.class_names)} classes)\n"
        f"{backbone_name(config.model)}: {parameters:,} parameters, "
        f"{len(detector.anchors):,} anchors at {config.image_size} px\n"
        f"{mapping.mesh.size} x {device}, {config.parallel}; results in {workdir}"
        + (f"\n{NO_EVALUATION}" if not config.data.eval else "")
        + (f"\nnote: {warning}" if (warning := chosen_on_test(config)) else "")
    )
