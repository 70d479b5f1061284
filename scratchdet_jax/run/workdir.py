"""Protects a workdir: one run at a time, and only with the same config."""

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

from scratchdet_jax.config.defaults import WITHOUT_EFFECT, flatten, run_ends
from scratchdet_jax.data.sources import dataset_name
from scratchdet_jax.errors import UserError
from scratchdet_jax.paths import buckets, in_bucket
from scratchdet_jax.run.checkpoints import RunInfo


def differences(saved: ml_collections.ConfigDict, now: ml_collections.ConfigDict) -> list[str]:
    """Returns the fields that differ and affect the result, such as "config.seed: was 0, now 5".

    The length of training is compared as the number of updates, and `config.data.folder` as the
    name of its data set. A further extension of the run (`config.extend`) is no difference.
    """
    before, after = _result_fields(saved), _result_fields(now)
    ends = run_ends(saved)
    if run_ends(now)[: len(ends)] == ends:
        after["extend"] = before["extend"]
    return [
        f"config.{name}: was {before.get(name)!r}, now {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _result_fields(config: ml_collections.ConfigDict) -> dict[str, object]:
    fields = {name: value for name, value in flatten(config).items() if name not in WITHOUT_EFFECT}
    del fields["train_images"]
    fields["num_steps"] = run_ends(config)[0]
    fields["data.folder"] = dataset_name(config.data.folder) if config.data.folder else ""
    return fields


def check_resume(saved: RunInfo, now: RunInfo, workdir: Path, force: bool) -> None:
    """Compares the run to be resumed with the one in `workdir`.

    With `force` (`--resume=force`), the differences are only printed.

    Raises:
        UserError: they differ in something that affects the result; names every such field.
    """
    if saved.class_names != now.class_names:
        raise UserError(
            f"{workdir} has a run with the classes {', '.join(saved.class_names)}, not "
            f"{', '.join(now.class_names)}: choose a new --workdir"
        )
    found = differences(saved.config, now.config)
    if found and force:
        print(f"resuming with another config (--resume=force): {'; '.join(found)}")
    elif found:
        longer = any(line.startswith("config.num_steps:") for line in found)
        extend = " (for a longer run: with --config.extend=1.5x added)" if longer else ""
        raise UserError(
            f"{workdir} has a run with another config ({'; '.join(found)}): use the same values"
            f"{extend}, choose a new --workdir, or resume anyway with --resume=force"
        )


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds `workdir/lock`, which the system releases however the process ends.

    In a bucket, it is a lock that expires (buckets/lease.py).

    In a run of several processes only process 0 may call this.

    Raises:
        UserError: another run holds the lock; names that run.
    """
    path = workdir / "lock"
    if in_bucket(workdir):
        with buckets("lease").leased(path, this_process()):
            yield
        return
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                print(
                    f"warning: {path} cannot be locked ({error.strerror}): make sure that no other "
                    "run writes to this workdir",
                    file=sys.stderr,
                )
                yield
                return
            file.seek(0)
            raise UserError(
                f"{workdir} is in use by another run ({file.read().strip() or 'just starting'}): "
                "wait until it ends, stop it, or choose a new --workdir"
            ) from None
        with contextlib.suppress(OSError):  # on a full disk the lock works without its text
            file.truncate(0)
            file.write(this_process() + "\n")
            file.flush()
        yield


def this_process() -> str:
    """Describes this process for the user of another one."""
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {socket.gethostname()} since {started}"
