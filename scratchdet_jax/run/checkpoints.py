"""Orbax checkpoints: asynchronous, atomic and checked; keeps the latest few and the best."""

import contextlib
import functools
import importlib.metadata
import json
import platform
import shutil
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import orbax.checkpoint as ocp

from scratchdet_jax.config.defaults import with_defaults
from scratchdet_jax.errors import Unavailable, UserError, one_line
from scratchdet_jax.files import write_text_atomically
from scratchdet_jax.parallel.processes import is_first
from scratchdet_jax.paths import buckets, in_bucket
from scratchdet_jax.progress import say
from scratchdet_jax.run.state import TrainState
from scratchdet_jax.version import VERSION

BEST_METRIC = "mAP"
IMPORTED = "imported.json"  # marks a workdir whose weights were imported by tools/import_torch
SCORE = "score.json"  # in the directory of a checkpoint, once it was evaluated
FULL_DISK = ("No space left on device", "Disk quota exceeded", "File too large")
CORRUPT = "corrupt"  # folder for damaged checkpoints, beside `checkpoints`
CHECKSUMS = "checksums.json"  # in the directory of a checkpoint: size and checksum of each file
STAMPED = "_CHECKPOINT_METADATA"  # written last: Orbax adds the time of completion
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class RunInfo(NamedTuple):
    """What a checkpoint stores besides arrays."""

    config: ml_collections.ConfigDict
    class_names: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns both as JSON values."""
        config = json.loads(self.config.to_json_best_effort())
        return {"config": config, "class_names": list(self.class_names)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RunInfo":
        """Reads the result of `to_json`; fields that an older config lacks get their defaults."""
        config = ml_collections.ConfigDict(_tuples(values["config"]))
        return cls(with_defaults(config), tuple(values["class_names"]))


class _Preserved:
    """Preservation policy for Orbax: the latest few and the best."""

    def __init__(self, checkpoints: "Checkpoints", keep: int) -> None:
        self._checkpoints, self._keep = checkpoints, keep

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns whether each checkpoint is kept, by increasing step."""
        steps = [info.step for info in checkpoints]
        kept = {*steps[-self._keep :], self._checkpoints.best_of(steps)}
        return [step in kept for step in steps]


class Checkpoints:
    """The checkpoints under `workdir/checkpoints`, one directory per step.

    Saving is asynchronous: the arrays are copied to the host, then written in the background to
    a temporary directory, which gets checksums and is renamed when complete, so a killed run leaves
    no partial checkpoint. In a bucket, which cannot rename, a mark is written last, and without it
    a checkpoint does not exist. The last `keep` steps and the one with the highest mAP are kept. A
    save that fails (a full disk) is reported and harms nothing; see `wait`.
    """

    def __init__(
        self,
        workdir: Path,
        keep: int = 1,
        read_only: bool = False,
        before_completion: Callable[[], object] = lambda: None,
    ) -> None:
        """Opens the directory; `read_only` neither creates nor deletes anything.

        `before_completion` is called in Orbax's thread of process 0 before a checkpoint is
        completed; if it fails, the save fails.
        """
        workdir = Path(workdir).absolute() if not in_bucket(workdir) else workdir
        self.directory, self._before_completion = workdir / "checkpoints", before_completion
        if read_only and not self.directory.is_dir():
            raise UserError(
                f"there is no run in {workdir}: {self.directory} does not exist; train first, or "
                "give the folder of a run with --workdir"
            )
        self._keep, self._read_only = keep, read_only
        self._scores: dict[int, float | None] = {}
        self._writing: int | None = None
        self._failed_step: int | None = None  # which the manager still takes for saved
        self._open()

    def _open(self) -> None:
        if not self._read_only and not in_bucket(self.directory) and is_first():
            for partial in self.directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(partial, ignore_errors=True)  # left by a run killed while writing
        on_commit = ocp.options.AsyncOptions(post_finalization_callback=self._add_checksums)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Preserved(self, self._keep),
            read_only=self._read_only,
            create=not self._read_only,
            cleanup_tmp_directories=not self._read_only,
            async_options=on_commit,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        self._failed_step = None

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, in order."""
        return sorted(step for step in self._manager.all_steps() if step != self._failed_step)

    @property
    def latest_step(self) -> int | None:
        """The newest step, or None."""
        return max(self.steps(), default=None)

    @property
    def best_step(self) -> int | None:
        """The step with the highest mAP; the newest if none was evaluated."""
        best = self.best_of(self.steps())
        return self.latest_step if best is None else best

    def best_of(self, steps: Sequence[int]) -> int | None:
        """Returns the best of `steps` by mAP, the later if equal; None if there is no mAP."""
        scored = {s: score for s in steps if (score := self.score(s)) is not None}
        return max(scored, key=lambda step: (scored[step], step)) if scored else None

    def newest_sound_step(self) -> int | None:
        """Returns the newest step whose files are intact; None if there is no checkpoint.

        Newer, damaged ones are moved to `corrupt`, each with a warning on stderr.

        Raises:
            UserError: all are damaged (then none is moved).
        """
        damaged: list[tuple[int, str]] = []
        for step in reversed(self.steps()):
            flaw = damage(self.directory / str(step))
            if flaw is None:
                self._set_aside(damaged)
                return step
            damaged.append((step, flaw))
        if damaged:
            flaws = "; ".join(f"step {step}: {flaw}" for step, flaw in damaged)
            raise UserError(
                f"every checkpoint in {self.directory} is damaged ({flaws}): restore one from a "
                "backup, or choose a new --workdir"
            )
        return None

    def save(
        self,
        step: int,
        state: TrainState,
        info: RunInfo,
        score: float | None = None,
        progress: dict[str, Any] | None = None,
    ) -> None:
        """Starts writing `state`, after waiting for the previous save.

        Args:
            step: number of updates made.
            state: the arrays; their buffers may be reused once this returns.
            info: config and class names of the run.
            score: the mAP, if it is already known; see `set_score`.
            progress: anything else that a resumed run needs, as JSON values.
        """
        about = {**info.to_json(), "progress": progress, "versions": versions()}
        self.wait()
        self._writing = step
        self._scores[step] = score  # nothing asks the bucket for that of a new checkpoint
        try:
            if self._failed_step is not None:
                self._open()
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), recipe=ocp.args.JsonSave(about)
                ),
            )
        except Exception as error:
            self._failed(error)
        if score is not None:
            self.set_score(step, score)

    def set_score(self, step: int, score: float | None) -> None:
        """Records the mAP of a saved step; None if it is undefined."""
        self.wait()
        if step not in self.steps():
            return  # its save failed, which was reported
        self._scores[step] = score
        if is_first():
            try:
                write_text_atomically(
                    self.directory / str(step) / SCORE, json.dumps({BEST_METRIC: score})
                )
            except OSError as error:
                say(
                    f"warning: the mAP of step {step} could not be written to {self.directory} "
                    f"({error.strerror})",
                    error=True,
                )

    def is_scored(self, step: int) -> bool:
        """Returns whether the evaluation of a step is complete, even if its mAP is undefined."""
        return (self.directory / str(step) / SCORE).exists() or self.score(step) is not None

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads the state of `step`, with the structure, shapes, types and sharding of `like`.

        Raises:
            UserError: its arrays differ from those of `like`, or it cannot be read.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._restore(step, state=ocp.args.StandardRestore(abstract))["state"]

    def restore_part(self, step: int, like: Any) -> Any:
        """Reads part of the state of `step`, such as `params` and `batch_stats`: that of `like`."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        arguments = ocp.args.PyTreeRestore(
            item=abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=True,
        )
        with ocp.PyTreeCheckpointer() as reader:
            return self._reading(
                step, lambda: reader.restore(self._item(step, "state"), args=arguments)
            )

    def info(self, step: int) -> RunInfo:
        """Returns the config and class names with which `step` was trained."""
        return RunInfo.from_json(self._about(step))

    def progress(self, step: int) -> dict[str, Any] | None:
        """Returns the argument `progress` with which `step` was saved."""
        return self._about(step).get("progress")

    def versions(self, step: int) -> dict[str, str]:
        """Returns what wrote `step`; see the function `versions`."""
        return dict(self._about(step)["versions"])

    def find(self, which: str) -> int:
        """Returns the step given by `which`: "best", "latest" or a number."""
        steps = self.steps()
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
        """Returns when the current save has reached the disk or has failed.

        A failure is reported on stderr, and the run continues to the next checkpoint.

        Raises:
            UserError: it failed in a run of several processes, which must stay together; in a
                bucket, Unavailable.
        """
        if self._writing is None:
            return
        try:
            self._manager.wait_until_finished()
            self._writing = None
        except Exception as error:
            self._failed(error)

    def close(self) -> None:
        """Waits for the current save and frees the threads."""
        self.wait()
        self._manager.close()

    def _failed(self, error: Exception) -> None:
        step, self._writing = self._writing, None
        advice = "check the network" if in_bucket(self.directory) else "make room on the disk"
        sentence = (
            f"the checkpoint of step {step} could not be written to {self.directory} "
            f"({_reason(error)}): {advice}; earlier checkpoints are intact"
        )
        if jax.process_count() > 1:
            raise (Unavailable if in_bucket(self.directory) else UserError)(sentence) from error
        say(f"warning: {sentence}, and training continues", error=True)
        # Orbax lists the failed step as existing; a new manager checks and removes partial files.
        self._failed_step = step
        with contextlib.suppress(OSError):  # a bucket may still be away: the next save tries again
            self._open()

    def _add_checksums(self) -> None:
        """Adds checksums in Orbax's thread, when all files are written, before the final rename."""
        if not is_first():
            return
        self._before_completion()
        if in_bucket(self.directory):
            write_checksums(self.directory / str(self._writing))
        for directory in self.directory.glob(f"{self._writing}.orbax-checkpoint-tmp*"):
            write_checksums(directory)

    def _set_aside(self, damaged: Sequence[tuple[int, str]]) -> None:
        for step, flaw in damaged:
            name, copy = str(step), 1
            while (aside := self.directory.parent / CORRUPT / name).exists():
                name, copy = f"{step}.{copy}", copy + 1
            if is_first():
                _move(self.directory / str(step), aside)
            print(
                f"warning: the checkpoint of step {step} is damaged ({flaw}): it was moved to "
                f"{aside}, and the previous one is used",
                file=sys.stderr,
            )
        if damaged:
            if jax.process_count() > 1:
                from jax.experimental import multihost_utils  # slow to import

                multihost_utils.sync_global_devices("damaged checkpoints moved")
            self._manager.close()
            self._open()

    def score(self, step: int) -> float | None:
        """Returns the mAP of a step; None if it was not evaluated or has no defined mAP."""
        if step not in self._scores:
            try:
                text = (self.directory / str(step) / SCORE).read_text()
                self._scores[step] = json.loads(text)[BEST_METRIC]
            except (OSError, ValueError, KeyError, TypeError):
                self._scores[step] = None
        return self._scores[step]

    def _item(self, step: int, name: str) -> Path:
        return self.directory / str(step) / name

    def _about(self, step: int) -> dict[str, Any]:
        return self._restore(step, recipe=ocp.args.JsonRestore())["recipe"]

    def _restore(self, step: int, **arguments: Any) -> Any:
        return self._reading(
            step, lambda: self._manager.restore(step, args=ocp.args.Composite(**arguments))
        )

    def _reading(self, step: int, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except Exception as error:
            raise UserError(
                f"the checkpoint of step {step} in {self.directory} cannot be read "
                f"({one_line(error)}): choose another with --checkpoint, or delete it and resume "
                "training from the previous one; if config.model has changed, choose a new "
                "--workdir, or start from it with --config.init_from"
            ) from error


def _reason(error: Exception) -> str:
    """Says why a checkpoint could not be written; leaves file names out if the disk is full."""
    text = str(error)
    full = next((reason for reason in FULL_DISK if reason in text), None)
    return full.lower() if full else one_line(getattr(error, "strerror", None) or error)


def write_checksums(directory: Path) -> None:
    """Adds the size and checksum of every file to a complete checkpoint.

    That is CRC-32, or in a bucket the CRC-32C that the service itself has computed.
    """
    if in_bucket(directory):
        sums: dict[str, Any] = _stored_checksums(directory)
    else:
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        sums = {str(path.relative_to(directory)): _size_and_crc(path) for path in files}
    kept = {name: sums[name] for name in sorted(sums) if name not in (CHECKSUMS, STAMPED)}
    write_text_atomically(directory / CHECKSUMS, json.dumps(kept))


def damage(directory: Path) -> str | None:
    """Says what is wrong with the files of a checkpoint, in a few words; None if intact.

    Orbax alone writes no checksums: such a checkpoint is taken as it is.
    """
    if not (directory / CHECKSUMS).exists():
        return None
    name = CHECKSUMS
    try:
        sums = dict(json.loads((directory / CHECKSUMS).read_bytes()))
        name = STAMPED
        json.loads((directory / STAMPED).read_bytes())
        stored = _stored_checksums(directory) if in_bucket(directory) else {}
        for name, (size, crc) in sums.items():
            # A checkpoint may have been copied: to a bucket, or from one to a disk.
            if isinstance(crc, int):
                found = _size_and_crc(directory / name)
            elif stored:
                found = stored.get(name) or [0, "missing"]
            else:
                found = [(directory / name).stat().st_size, crc]
            if found != [size, crc]:
                return f"the content of {name} has changed"
    except FileNotFoundError:
        return f"{name} is missing"
    except (OSError, ValueError, TypeError):
        return f"{name} cannot be read"
    return None


def _move(directory: Path, target: Path) -> None:
    if in_bucket(directory):
        buckets("gcs").move(directory, target)
    else:
        target.parent.mkdir(exist_ok=True)
        directory.rename(target)


def _stored_checksums(directory: Path) -> dict[str, list[Any]]:
    return {name: list(sums) for name, sums in buckets("gcs").checksums(directory).items()}


def _size_and_crc(path: Path) -> list[int]:
    size = value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            size, value = size + len(chunk), zlib.crc32(chunk, value)
        return [size, value]


@functools.cache
def versions() -> dict[str, str]:
    """Returns the versions of the program and its libraries, and "devices": number and kind."""
    devices = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    if jax.process_count() > 1:
        devices += f" in {jax.process_count()} processes"
    return {
        "scratchdet_jax": VERSION,
        "Python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "devices": devices,
    }


def _tuples(value: Any) -> Any:
    """Turns lists from JSON into tuples: JSON has no tuples, and configs have no lists."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
