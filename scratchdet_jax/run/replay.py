"""Saves a diverged step for replay: the state before it and its batch, as plain arrays."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from flax import traverse_util

from scratchdet_jax.config.defaults import with_defaults
from scratchdet_jax.data.loading import substitutes, train_loader
from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.errors import UserError
from scratchdet_jax.files import write_atomically
from scratchdet_jax.parallel.processes import is_first
from scratchdet_jax.run.checkpoints import RunInfo, tuples
from scratchdet_jax.run.state import TrainState

FOLDER = "replay"


class Replay(NamedTuple):
    """A saved step.

    Attributes:
        step: number of the step, from 1.
        quantity: name of the quantity that was not finite.
        info: the run's config and class names.
        image_ids: ids of the batch's images, in order.
        batch: host arrays [accumulate_steps, B, …], as for the training step.
        state: the state before the step, without that of the optimizer.
    """

    step: int
    quantity: str
    info: RunInfo
    image_ids: tuple[str, ...]
    batch: dict[str, np.ndarray]
    state: TrainState


def batch_of_step(
    config: ml_collections.ConfigDict, source: DetectionSource, step: int
) -> dict[str, np.ndarray]:
    """Reads the global batch [accumulate_steps, B, …] of update `step` (from 1)."""
    loader = train_loader(config, source, start_step=step - 1, substituted=substitutes(config))
    try:
        return next(loader)
    finally:
        loader.close()


def save_replay(
    workdir: Path,
    step: int,
    quantity: str,
    info: RunInfo,
    source: DetectionSource,
    state: TrainState,
) -> tuple[Path, list[str]]:
    """Writes `workdir/replay/step_N.npz` (NumPy arrays, no pickle).

    Args:
        workdir: the run's folder.
        step: the update that diverged.
        quantity: name of the quantity that was not finite.
        info: the run's config and class names.
        source: the training data; the batch is a function of (seed, step) and is read again.
        state: the state after the step, marked as diverged (see update_unless_diverged).

    Returns:
        The path of the file, and the ids of the batch's images.
    """
    batch = batch_of_step(info.config, source, step)
    ids = [source.image_id(int(i)) for i in batch["id"].ravel()]
    about = {
        "step": step,
        "quantity": quantity,
        "config": json.loads(info.config.to_json_best_effort()),
        "class_names": list(info.class_names),
        "image_ids": ids,
    }
    state = jax.device_get(state)
    state = state.replace(step=np.int32(step - 1))
    arrays = {f"batch/{key}": value for key, value in batch.items()}
    arrays |= {f"state/{name}": np.asarray(value) for name, value in _by_name(state).items()}
    path = workdir / FOLDER / f"step_{step}.npz"
    if is_first():
        path.parent.mkdir(exist_ok=True)
        write_atomically(
            path, lambda file: np.savez(file, about=np.array(json.dumps(about)), **arrays)
        )
    return path, ids


def load_replay(workdir: Path, step: int | None = None) -> Replay:
    """Reads a saved step, by default the newest.

    Raises:
        UserError: there is no such step, or the file is damaged.
    """
    files = {int(p.stem.removeprefix("step_")): p for p in (workdir / FOLDER).glob("step_*.npz")}
    if not files:
        raise UserError(f"{workdir / FOLDER} holds no step: a step is saved when training diverges")
    step = max(files) if step is None else step
    if step not in files:
        raise UserError(
            f"{workdir / FOLDER} has no step {step}; it has {', '.join(map(str, sorted(files)))}"
        )
    try:
        with np.load(files[step], allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays.pop("about")))
        config = with_defaults(ml_collections.ConfigDict(tuples(about["config"])))
        info = RunInfo(config, tuple(about["class_names"]))
        state = _state(arrays)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{files[step]} cannot be read ({error}): it is damaged") from None
    batch = {n.removeprefix("batch/"): a for n, a in arrays.items() if n.startswith("batch/")}
    return Replay(step, about["quantity"], info, tuple(about["image_ids"]), batch, state)


def _state(arrays: dict[str, np.ndarray]) -> TrainState:
    """Returns the saved state; its opt_state is empty, because a replay makes no update."""
    tree = traverse_util.unflatten_dict(arrays, sep="/")["state"]
    return TrainState(
        step=tree["step"],
        params=tree["params"],
        batch_stats=tree.get("batch_stats", {}),
        opt_state={},
    )


def _by_name(state: TrainState) -> dict[str, Any]:
    """Returns the arrays of a state by path, in the order of its leaves."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
