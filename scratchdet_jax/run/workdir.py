"""Who may write into a workdir: one run at a time, and only a run of the same config."""

import contextlib
import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import ml_collections

from scratchdet_jax.config.defaults import with_defaults
from scratchdet_jax.config.fields import WITHOUT_EFFECT, flatten, number_of_steps
from scratchdet_jax.data.builders.voc_folder import dataset_name
from scratchdet_jax.errors import UserError
from scratchdet_jax.run.checkpoints import RunInfo


def differences(saved: ml_collections.ConfigDict, now: ml_collections.ConfigDict) -> list[str]:
    """What differs and changes the result, a field each: "config.seed: was 0, now 5".

    The length of training counts as its number of updates, however it is written; own data by the
    name that its folder gives the data set.
    """
    before, after = (_result_fields(config) for config in (with_defaults(saved), now))
    return [
        f"config.{name}: was {before.get(name)!r}, now {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _result_fields(config: ml_collections.ConfigDict) -> dict[str, object]:
    fields = {name: value for name, value in flatten(config).items() if name not in WITHOUT_EFFECT}
    del fields["train_images"]
    fields["num_steps"] = number_of_steps(config)
    fields["data.folder"] = dataset_name(config.data.folder) if config.data.folder else ""
    return fields


def check_resume(saved: RunInfo, now: RunInfo, workdir: Path, force: bool) -> None:
    """Compares a run with the one that `workdir` holds.

    Args:
        saved: of the checkpoint.
        now: of the run that is to go on.
        workdir: for the message.
        force: print the differences and go on (`--resume=force`).

    Raises:
        UserError: they differ in something that changes the result; names every such field.
    """
    if saved.class_names != now.class_names:
        raise UserError(
            f"{workdir} holds a run on the classes {', '.join(saved.class_names)}, not "
            f"{', '.join(now.class_names)}: choose a new --workdir"
        )
    found = differences(saved.config, now.config)
    if found and force:
        print(f"resumed by force with another config: {'; '.join(found)}")
    elif found:
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(found)}): give the same values "
            "again, choose a new --workdir, or go on all the same with --resume=force"
        )


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds `workdir/lock`, which the system releases however the process ends.

    In a run of several processes only process 0 is to ask for it.

    Raises:
        UserError: another run holds it; names that run.
    """
    path = workdir / "lock"
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                print(
                    f"warning: {path} cannot be locked ({error.strerror}): see to it that no "
                    "second run writes into this workdir",
                    file=sys.stderr,
                )
                yield
                return
            file.seek(0)
            raise UserError(
                f"{workdir} is in use by another run ({file.read().strip() or 'just starting'}): "
                "wait for its end, stop it, or choose a new --workdir"
            ) from None
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its text
            file.truncate(0)
            file.write(
                f"process {os.getpid()} on {socket.gethostname()} since "
                f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n"
            )
            file.flush()
        yield
