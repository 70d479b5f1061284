"""Runs a TFDS builder quietly and atomically, and removes what killed runs left behind."""

import contextlib
import fcntl
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from scratchdet_jax.data.tfds_dataset import INFO
from scratchdet_jax.errors import UserError
from scratchdet_jax.files import write_bytes, writing
from scratchdet_jax.paths import in_bucket
from scratchdet_jax.progress import map_ahead, track


def write_dataset(make_builder: Callable[[], tfds.core.DatasetBuilder]) -> None:
    """Writes a data set as ArrayRecord files; it appears under its name only when complete.

    Several processes may do so at the same time: the first to finish wins, and the identical copies
    of the others are dropped.

    Raises:
        UserError: the disk is full or the directory is not writable.
    """
    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        builder = make_builder()
        directory = Path(builder.data_path)
        # Nothing is downloaded, but TFDS announces it and creates a directory for it.
        with tempfile.TemporaryDirectory() as unused:
            try:
                with _writing_into(directory.parent), contextlib.redirect_stdout(io.StringIO()):
                    builder.download_and_prepare(download_dir=unused, file_format="array_record")
            except (OSError, RuntimeError) as error:
                reason = _write_failure(error)
                if reason and not directory.exists():  # otherwise another process was faster
                    raise UserError(
                        f"{directory} cannot be written ({reason}): make room or choose another "
                        "data folder"
                    ) from error
                if not reason:
                    raise
    finally:
        logging.set_verbosity(verbosity)


def exists(directory: Path) -> bool:
    """Returns whether a data set exists; in a bucket, whether it is complete."""
    return (directory / INFO).exists() if in_bucket(directory) else directory.exists()


def write_to_bucket(
    make_builder: Callable[[Path], tfds.core.DatasetBuilder], directory: Path, data_dir: Path
) -> None:
    """Writes a data set to a temporary folder and uploads it; it is complete or absent.

    An existing one is absent until the new one is complete: objects cannot be exchanged.

    `make_builder` makes the builder for a data_dir; `directory` is the data set in `data_dir`.

    Raises:
        UserError: the local disk is full, or the bucket cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="scratchdet-") as local:
        write_dataset(lambda: make_builder(Path(local)))
        name = str(directory).removeprefix(f"{data_dir}/")
        files = [path for path in (Path(local) / name).iterdir() if path.name != INFO]
        with writing(str(directory), "run the same command again"):
            (directory / INFO).unlink(missing_ok=True)
            for old in directory.iterdir() if directory.exists() else []:
                old.unlink()
            size = sum(path.stat().st_size for path in files)
            print(f"uploading {size / 1e6:.1f} MB to {directory}", flush=True)
            written = map_ahead(lambda p: write_bytes(directory / p.name, p.read_bytes()), files)
            for _ in track(written, len(files), "uploading", "file"):
                pass
            write_bytes(directory / INFO, (Path(local) / name / INFO).read_bytes())


def replace_dataset(
    make_builder: Callable[[Path], tfds.core.DatasetBuilder], directory: Path, data_dir: Path
) -> None:
    """Writes an existing data set again beside the old one, and then puts it in its place.

    Whenever the process is killed, either the old or the new data set remains.

    `make_builder` makes the builder for a data_dir; `directory` is the data set in `data_dir`.

    Raises:
        UserError: the disk is full or a directory is not writable; the old data set is kept.
    """
    with _writing_into(directory.parent):
        staging = Path(tempfile.mkdtemp(prefix="incomplete.", dir=directory.parent))
        try:
            write_dataset(lambda: make_builder(staging))
            _exchange(staging / directory.relative_to(data_dir), directory)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def restore(directory: Path) -> None:
    """Puts a data set back that a process killed inside `_exchange` had moved aside."""
    aside = _aside(directory)
    if not in_bucket(directory) and aside.exists() and not directory.exists():
        with contextlib.suppress(OSError):
            aside.rename(directory)


def _aside(directory: Path) -> Path:
    return directory.with_name(f"replaced.{directory.name}")


def _exchange(new: Path, directory: Path) -> None:
    """Puts `new` in the place of `directory`; the old one is removed.

    A process killed between the two renames leaves the old data set aside, for `restore`.
    """
    aside = _aside(directory)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        if directory.exists():
            directory.rename(aside)
        new.rename(directory)
    except OSError as error:
        restore(directory)
        raise UserError(
            f"{directory} cannot be replaced ({error.strerror or error}): the old data set is kept"
        ) from None
    shutil.rmtree(aside, ignore_errors=True)


def _write_failure(error: OSError | RuntimeError) -> str:
    """Says why writing failed; "" if the error has another cause."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # From array_record: "write() failed: No space left on device; writing FILE; at byte …"
    reason, writing, _ = str(error).partition("; writing ")
    return reason.removeprefix("write() failed: ") if writing else ""


@contextlib.contextmanager
def _writing_into(folder: Path) -> Iterator[None]:
    """Marks a folder as being written to, after removing what killed runs left in it.

    The mark is a shared lock on the folder, which the system releases however the process ends. If
    a process can get it exclusively, no other one is writing and incomplete directories are
    leftovers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # others are writing, or the file system has no locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in folder.glob("incomplete.*"):
                shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)
