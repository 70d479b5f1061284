"""Saves a diverged step for replay: the state before it and its batch, as plain arrays."""

import json
from pathlib import Path

import jax
import ml_collections
import numpy as np
from flax import traverse_util

from scratchdet_jax.data.loading import substitutes, train_loader
from scratchdet_jax.data.records import DetectionSource
from scratchdet_jax.files import write_atomically
from scratchdet_jax.parallel.processes import is_first
from scratchdet_jax.run.checkpoints import RunInfo
from scratchdet_jax.run.state import TrainState

FOLDER = "replay"


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
    """Writes `workdir/replay/step_N.npz` (NumPy arrays, no pickle), which tools/replay.py reads.

    `quantity` names what was not finite; `state` is the one after the step, marked as diverged (see
    update_unless_diverged). The batch is a function of (seed, step) and is read again.

    Returns:
        The path of the file, and the ids of the batch's images.
    """
    batch = batch_of_step(info.config, source, step)
    ids = [source.image_id(int(i)) for i in batch["id"].ravel()]
    about = {"step": step, "quantity": quantity, **info.to_json(), "image_ids": ids}
    kept = jax.device_get(state.variables) | {"step": np.int32(step - 1)}
    arrays = traverse_util.flatten_dict({"batch": batch, "state": kept}, sep="/")
    path = workdir / FOLDER / f"step_{step}.npz"
    if is_first():
        path.parent.mkdir(exist_ok=True)
        write_atomically(
            path, lambda file: np.savez(file, about=np.array(json.dumps(about)), **arrays)
        )
    return path, ids
