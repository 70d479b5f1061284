"""Orbax checkpoints: asynchronous, atomic, the latest few and the best."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from scratchdet_jax.errors import UserError
from scratchdet_jax.training.state import TrainState

BEST_METRIC = "mAP"
IMPORTED = "imported.json"  # in a workdir whose weights tools/import_torch has put there


class Recipe(NamedTuple):
    """What a checkpoint knows besides the numbers."""

    config: ml_collections.ConfigDict
    class_names: tuple[str, ...]


class Checkpoints:
    """The checkpoints under ``workdir/checkpoints``, one directory a step.

    Saving is asynchronous: the arrays are copied to the host, then written in the background into
    a temporary directory that is renamed when complete, so a killed run leaves no half checkpoint.
    The last ``keep`` steps and the one with the highest mAP are kept.
    """

    def __init__(self, workdir: Path, keep: int = 1, read_only: bool = False) -> None:
        """Opens the directory; ``read_only`` neither creates nor deletes anything."""
        self.directory = Path(workdir).absolute() / "checkpoints"
        if read_only and not self.directory.is_dir():
            raise UserError(
                f"there is no run in {workdir}: {self.directory} does not exist; train first, or "
                "name the run with --workdir"
            )
        latest = policies.LatestN(n=keep)
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics[BEST_METRIC], n=1,
            keep_checkpoints_without_metrics=False,
        )  # fmt: skip
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([latest, best]),
            read_only=read_only,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    @property
    def latest_step(self) -> int | None:
        """The newest step, or None."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step with the highest mAP; without any evaluation the newest."""
        scores = {step: self._about(step).get(BEST_METRIC) for step in self._manager.all_steps()}
        scored = {step: score for step, score in scores.items() if score is not None}
        return max(scored, key=lambda step: (scored[step], step)) if scored else self.latest_step

    def save(self, step: int, state: TrainState, recipe: Recipe, score: float | None) -> None:
        """Starts writing ``state``; ``score`` is the mAP where the step was evaluated."""
        about = {
            "config": json.loads(recipe.config.to_json_best_effort()),
            "class_names": list(recipe.class_names),
            BEST_METRIC: score,
        }
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), recipe=ocp.args.JsonSave(about)
            ),
            metrics=None if score is None else {BEST_METRIC: score},
        )

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of ``step``, laid out (shape, type, sharding) as ``like`` is."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._restore(step, state=ocp.args.StandardRestore(abstract))["state"]

    def restore_variables(self, step: int, like: Any) -> Any:
        """``params`` and ``batch_stats`` of ``step`` alone, laid out as ``like`` is."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        arguments = ocp.args.PyTreeRestore(
            item=abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=True,
        )
        directory = self.directory / str(step) / "state"
        with ocp.PyTreeCheckpointer() as reader:
            return reader.restore(directory, args=arguments)

    def recipe(self, step: int) -> Recipe:
        """Config and class names that ``step`` was trained with."""
        about = self._about(step)
        return Recipe(
            ml_collections.ConfigDict(_tuples(about["config"])), tuple(about["class_names"])
        )

    def find(self, which: str) -> int:
        """The step that ``which`` names: "best", "latest" or a number."""
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise UserError(f"there is no checkpoint in {self.directory}: train first")
        named = {"best": self.best_step, "latest": self.latest_step}
        step = named.get(which, int(which) if which.isdecimal() else None)
        if step not in steps:
            raise UserError(
                f"there is no checkpoint {which!r} in {self.directory}; there are "
                f"best, latest, {', '.join(map(str, steps))}"
            )
        return step

    def wait(self) -> None:
        """Returns when every save has reached the disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the saves and frees the threads."""
        self._manager.close()

    def _about(self, step: int) -> dict[str, Any]:
        return self._restore(step, recipe=ocp.args.JsonRestore())["recipe"]

    def _restore(self, step: int, **arguments: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**arguments))


def _tuples(value: Any) -> Any:
    """JSON has no tuples, configs have no lists: every list was a tuple."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
