"""Opens a trained detector: a checkpoint of a run or an exported file, with its config."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections

from scratchdet_jax.detector import Detector, build_detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.paths import run_path, user_path
from scratchdet_jax.run.checkpoints import Checkpoints, RunInfo
from scratchdet_jax.run.exported import ExportedRun, read_export


class SavedRun(NamedTuple):
    """A checkpoint of a run that is not loaded yet.

    Attributes:
        workdir: the folder of the run.
        step: the step of the checkpoint.
        info: what is stored with it.
        is_best: whether it was asked for as the best one.
    """

    workdir: Path
    step: int
    info: RunInfo
    is_best: bool = True


def split_run(text: str) -> tuple[Path, str]:
    """Splits WORKDIR[@CHECKPOINT] into its parts; the checkpoint is "best" by default."""
    workdir, separator, step = text.rpartition("@")
    if not separator or user_path(text).exists():
        return user_path(text), "best"
    return user_path(workdir), step


def open_trained(path: Path, checkpoint: str = "best") -> SavedRun | ExportedRun:
    """Opens a checkpoint of a run, or an exported file, which has no other.

    Raises:
        UserError: there is no such run, checkpoint or file, or it cannot be used.
    """
    if not path.is_file():
        return open_run(path, checkpoint)
    if checkpoint != "best":
        raise UserError(
            f"{path} is an exported file and has no checkpoint {checkpoint!r}: leave it out"
        )
    return read_export(path)


def open_run(workdir: Path, checkpoint: str = "best") -> SavedRun:
    """Finds a checkpoint ("best", "latest" or a step) and the config it was trained with."""
    workdir = run_path(workdir)
    checkpoints = Checkpoints(workdir, read_only=True)
    step = checkpoints.find(checkpoint)
    info = checkpoints.info(step)
    checkpoints.close()
    return SavedRun(workdir, step, info, is_best=checkpoint == "best")


def load_detector(
    run: SavedRun | ExportedRun, config: ml_collections.ConfigDict | None = None
) -> tuple[Detector, Any]:
    """Loads the detector and its variables (params, batch_stats).

    With `config.ema_decay`, the variables are the averages.

    `config` replaces the config that the run was trained with.
    """
    config = run.info.config if config is None else config
    detector = build_detector(config, run.info.class_names)
    if isinstance(run, ExportedRun):
        return detector, run.variables
    shapes = jax.eval_shape(
        lambda: detector.model.init(
            {"params": jax.random.key(0)},
            jax.numpy.zeros((1, config.image_size, config.image_size, 3)),
            train=False,
        )
    )
    like = {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}
    checkpoints = Checkpoints(run.workdir, read_only=True)
    averaged = run.info.config.ema_decay > 0
    tree = checkpoints.restore_part(run.step, {"average": like} if averaged else like)
    checkpoints.close()
    return detector, tree["average"] if averaged else tree
