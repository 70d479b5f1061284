"""Trains, evaluates and checkpoints: from a config to a trained detector."""

import contextlib
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections

from scratchdet_jax import stopping
from scratchdet_jax.config.validation import validate
from scratchdet_jax.data.loading import substituted_line, substitutes, to_device, train_loader
from scratchdet_jax.data.sources import NO_EVALUATION, check_batch_size, chosen_on_test, open_splits
from scratchdet_jax.detector import Batch, build_detector
from scratchdet_jax.errors import Unavailable, UserError, plural
from scratchdet_jax.evaluation.evaluator import Evaluator, summary_line
from scratchdet_jax.files import writable_folder
from scratchdet_jax.mirror import Mirror
from scratchdet_jax.models.ssd import backbone_name
from scratchdet_jax.parallel import processes
from scratchdet_jax.parallel.devices import AXIS, DeviceMapping
from scratchdet_jax.paths import in_bucket, run_path
from scratchdet_jax.progress import say
from scratchdet_jax.run.checkpoints import IMPORTED, Checkpoints, RunInfo
from scratchdet_jax.run.metrics import METRICS, Diverged, MetricLogger
from scratchdet_jax.run.replay import save_replay
from scratchdet_jax.run.state import TrainState, create_state
from scratchdet_jax.run.watchdog import Watchdog
from scratchdet_jax.run.workdir import check_resume, locked
from scratchdet_jax.training.init_from import init_from_run
from scratchdet_jax.training.optimizer import Improvement, Schedule, make_optimizer
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
    if (workdir / IMPORTED).exists():
        raise UserError(
            f"{workdir} holds imported weights and cannot be resumed: start from it with "
            f"--config.init_from={workdir} and another --workdir"
        )
    use_compilation_cache(config.compilation_cache)
    alone = locked(workdir) if processes.is_first() else contextlib.nullcontext()
    stop = stopping.of_command() or stopping.Stop()
    with alone, contextlib.closing(_log_files(workdir)) as files:
        run = _Run(config, files, resume == "force")
        start = _restore(run)
        if _is_finished(run, start):
            run.checkpoints.close()
            return start.state
        _announce(run, start)
        return _train(run, start, stop)


def _log_files(workdir: Path) -> Mirror:
    try:
        return Mirror(workdir, [METRICS] if processes.is_first() else [])
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be read ({error.strerror})") from None


def use_compilation_cache(folder: str) -> None:
    """Keeps compiled programs in `folder` (`config.compilation_cache`); empty: keeps none."""
    if folder:
        path = writable_folder(run_path(folder), "config.compilation_cache")
        jax.config.update("jax_compilation_cache_dir", str(path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


class _Run:
    """What stays the same from the first update of a run to the last, however often it is resumed.

    Attributes:
        files: where its log is written.
        last_saved: step of the newest checkpoint; None in a new run.
        eval_source: the evaluation split; None if the run does not evaluate.
    """

    def __init__(self, config: ml_collections.ConfigDict, files: Mirror, force: bool) -> None:
        """Opens data and checkpoints; refuses a config that cannot run or is not the workdir's."""
        self.config, self.files, self.workdir = config, files, files.target
        workdir = self.workdir
        self.mapping = DeviceMapping(config.parallel)
        validate(config, self.mapping.mesh.size)
        self.schedule = Schedule(config)
        self.source, self.eval_source = processes.together(
            lambda: open_splits(config), first_alone=True
        )

        processes.check_shared(workdir, "--workdir")
        self.checkpoints = Checkpoints(
            workdir, config.keep_checkpoints, before_completion=files.publish
        )
        self.info = RunInfo(config, self.source.class_names)
        self.last_saved = self.checkpoints.newest_sound_step()
        if self.last_saved is None:
            check_batch_size(config, self.source, self.mapping.mesh.size)
        else:
            saved = self.checkpoints.info(self.last_saved)
            processes.together(lambda: check_resume(saved, self.info, workdir, force))

        self.detector = build_detector(config, self.source.class_names, AXIS)
        self.optimizer = make_optimizer(config)


class _Start(NamedTuple):
    """Where the updates of this process begin.

    Attributes:
        step: number of updates made before.
        state: the state after them; random weights at step 0.
        improvement: what the evaluations have shown.
        evaluation_missing: whether the evaluation of this step is due and was interrupted.
        progress: the logger's at this step; None at step 0.
    """

    step: int
    state: TrainState
    improvement: Improvement = Improvement()
    evaluation_missing: bool = False
    progress: dict[str, Any] | None = None


def _restore(run: _Run) -> _Start:
    """Restores the newest checkpoint; without one, initialises the weights at random."""
    config, checkpoints, step = run.config, run.checkpoints, run.last_saved

    def fresh_state() -> TrainState:
        averaged = config.ema_decay > 0
        model = run.detector.model
        return create_state(model, run.optimizer, config.image_size, config.seed, averaged)

    if step is None:
        return _Start(0, run.mapping.replicate(processes.from_first(fresh_state())))
    state = checkpoints.restore(step, like=run.mapping.shapes(fresh_state))
    progress = checkpoints.progress(step)
    improvement = Improvement.from_json(progress)
    scored = checkpoints.is_scored(step)
    if scored:  # the checkpoint was written before its evaluation
        improvement = improvement.after(checkpoints.score(step))
    missing = run.schedule.evaluation_due(step) and not scored
    return _Start(step, state, improvement, missing, progress)


def _is_finished(run: _Run, start: _Start) -> bool:
    """Returns whether no update and no evaluation is left; prints what was reached if so."""
    complete = start.step >= run.schedule.steps
    stopped_early = start.improvement.ends(run.config.eval.stop_after)
    if start.evaluation_missing or not (complete or stopped_early):
        return False
    all_of = "all " if complete else ""
    print(f"already finished: {run.workdir} has {all_of}{start.step} steps")
    print(_conclusion(run, start.step, start.improvement))
    return True


def _announce(run: _Run, start: _Start) -> None:
    """Prints what is about to run, and from where."""
    config, schedule, source = run.config, run.schedule, run.source
    parameters = sum(x.size for x in jax.tree.leaves(start.state.params))
    device = run.mapping.mesh.devices.flat[0].device_kind
    print(
        f"{config.name}: {schedule.steps} updates of {config.batch_size} images from "
        f"{source.spec} ({len(source)} images, {len(source.class_names)} classes)\n"
        f"{backbone_name(config.model)}: {parameters:,} parameters, "
        f"{len(run.detector.anchors):,} anchors at {config.image_size} px\n"
        f"{run.mapping.mesh.size} x {device}, {config.parallel}; results in {run.workdir}"
    )
    if not config.data.eval:
        print(NO_EVALUATION)
    if warning := chosen_on_test(config):
        print(f"note: {warning}")
    if start.step:
        print(f"resumed from step {start.step} of {schedule.steps}")
    if schedule.extends(start.step):
        before, now = (float(schedule.learning_rate(i)) for i in (start.step - 1, start.step))
        print(f"extended: the learning rate goes from {before:.3g} to {now:.3g}")


def _train(run: _Run, start: _Start, stop: stopping.Stop) -> TrainState:
    """Makes the updates from `start` to the end of the run; returns the final state."""
    if run.config.init_from and not start.step:
        initial = jax.device_get(start.state.variables)
        variables = init_from_run(run.config.init_from, run.detector, initial)
        start = start._replace(state=start.state.starting_from(run.mapping.replicate(variables)))
    loop = _Loop(run, start, stop)
    with stop.deferred(), contextlib.closing(loop):
        loop.run()
    if loop.step > start.step and run.checkpoints.latest_step != loop.step:
        remote = in_bucket(run.workdir)
        advice = "check rights and network" if remote else "free disk space"
        raise (Unavailable if remote else UserError)(
            f"training is complete, but its last checkpoint could not be written to {run.workdir}: "
            f"{advice} and run the same command again; it repeats the steps since the previous "
            "checkpoint"
        )
    print(_conclusion(run, loop.step, loop.improvement))
    return loop.state


class _Loop:
    """The updates of this process, with the evaluations and checkpoints between them.

    A request to stop takes effect after an update, and at once in a part where nothing is lost.

    Attributes:
        step: number of updates made.
        state: the state after them.
        improvement: what the evaluations have shown.
    """

    def __init__(self, run: _Run, start: _Start, stop: stopping.Stop) -> None:
        """Opens the log and starts to load batches."""
        config, mapping, detector = run.config, run.mapping, run.detector
        self.step, self.state, self.improvement = start.step, start.state, start.improvement
        self._run, self._stop = run, stop
        self._evaluation_missing = start.evaluation_missing
        self._evaluator = (
            Evaluator(detector, mapping, run.eval_source) if run.eval_source is not None else None
        )
        self._train_step = mapping.map_train_step(make_train_step(detector, run.optimizer))
        self._is_compiled = False
        self._logger = MetricLogger(
            run.files,
            start_step=start.step,
            num_steps=run.schedule.steps,
            batch_size=config.batch_size,
            log_every=config.log_every,
            progress=start.progress,
            evaluated=not start.evaluation_missing,
        )
        self._watchdog = Watchdog(config.stall_seconds, run.files)
        self._substituted = substitutes(config)
        loader = train_loader(
            config,
            run.source,
            start_step=start.step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            substituted=self._substituted,
        )
        self._batches = to_device(loader, mapping.put_batch)

    def run(self) -> None:
        """Makes updates until the run is complete or the evaluations no longer improve.

        Raises:
            UserError: training diverged.
            Stopped: the run was asked to stop.
        """
        schedule, stop_after = self._run.schedule, self._run.config.eval.stop_after
        if self._evaluation_missing:
            self._evaluate()
        try:
            while self.step < schedule.steps and not self.improvement.ends(stop_after):
                self._update()
                if self._stop.requested():
                    self._save()
                    with self._watchdog.paused():
                        print(self._saved(), file=sys.stderr)
                    raise self._stop.error()
                if schedule.checkpoint_due(self.step):
                    self._save()
                if schedule.evaluation_due(self.step):
                    self._evaluate()
        except Diverged as error:
            raise self._diverged(error) from None

    def _update(self) -> None:
        with self._logger.waiting():
            batch = next(self._batches)
        if not self._is_compiled:
            self._compile(batch)
        self.state, metrics = self._train_step(self.state, batch)
        self.step += 1
        self._logger.log_step(self.step, metrics)
        self._watchdog.beat(self.step - 1)  # log_step has waited for its end

    def _compile(self, batch: Batch) -> None:
        """Compiles the step, which may take minutes; nothing is lost if that is interrupted."""
        print("compiling the training step", file=sys.stderr)

        def nothing_lost() -> str:
            return f"stopped by {self._stop.name} while compiling: run the same command to resume"

        with self._stop.interruptible(nothing_lost), self._logger.paused():
            self._train_step = self._run.mapping.compile(self._train_step, self.state, batch)
        self._is_compiled = True

    def _save(self) -> None:
        self._logger.flush()  # a step is only checkpointed if it is known to be finite
        with self._logger.paused(), self._watchdog.paused():
            progress = self._logger.progress() | {"improvement": self.improvement}
            self._run.checkpoints.save(self.step, self.state, self._run.info, progress=progress)

    def _saved(self) -> str:
        """Waits until everything is on the disk; returns the sentence that says so."""
        self._run.checkpoints.wait()
        self._logger.sync()
        saved = self._run.checkpoints.latest_step
        return (
            f"stopped by {self._stop.name} after step {self.step}; saved up to step {saved}: run "
            "the same command to resume"
        )

    def _evaluate(self) -> None:
        """Evaluates the state; its checkpoint is or will be written, so a stop loses nothing."""
        checkpoints, logger, evaluator = self._run.checkpoints, self._logger, self._evaluator
        if evaluator is None:
            return
        with self._stop.interruptible(self._saved), logger.paused():
            evaluation = evaluator.evaluate(self.state.result, self._watchdog.beat)
        results = evaluation.results
        logger.log_evaluation(self.step, results)
        say(f"step {self.step}: {summary_line(results)}")
        with self._watchdog.paused():
            logger.sync()  # with a score, a resumed run does not evaluate again
            checkpoints.set_score(self.step, results["mAP"])
            if count := self._run.config.eval.log_pictures:
                with logger.paused():
                    logger.log_pictures(self.step, evaluator.pictures(evaluation, count))
        self.improvement = self.improvement.after(results["mAP"])

    def _diverged(self, error: Diverged) -> UserError:
        """Saves the step for replay; returns the error that names the file and the images."""
        run = self._run
        try:
            path, ids = save_replay(
                run.workdir, error.step, error.quantity, run.info, run.source, self.state
            )
        except (OSError, UserError) as failure:
            return UserError(f"{error}; its batch could not be saved for replay ({failure})")
        return UserError(
            f"{error}. The batch ({', '.join(ids)}) and the state before the step are in {path}: "
            f"scratchdet replay --workdir={run.workdir} shows what is not "
            "finite"
        )

    def close(self) -> None:
        """Waits for the last checkpoint, closes the log, and prints what the data left out."""
        run = self._run
        self._watchdog.close()
        self._batches.close()
        self._logger.close()
        run.checkpoints.close()
        notes = [data.left_out_line() for data in (run.source, run.eval_source) if data]
        notes.append(substituted_line(run.source, self._substituted or {}))
        for line in filter(None, notes):
            print(line)


def _conclusion(run: _Run, step: int, improvement: Improvement) -> str:
    """Returns what was reached, and the commands that come next."""
    reached = f"trained {step} steps"
    if step < run.schedule.steps:
        reached = (
            f"stopped early, after {step} of {run.schedule.steps} steps: no better mAP in "
            f"{plural(improvement.since, 'evaluation')} (config.eval.stop_after; 0 continues)"
        )
    best = run.checkpoints.best_step
    score = None if best is None else run.checkpoints.score(best)
    if run.eval_source is not None and score is not None:
        reached += f"; best mAP {score:.4f} at step {best}"
    return (
        f"{reached}\n"
        f"next: python eval.py --workdir={run.workdir}\n"
        f"      scratchdet predict --workdir={run.workdir} "
        f"--output={run.workdir / 'pictures'} [IMAGE …]"
    )
