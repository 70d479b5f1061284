"""Running a TFDS builder, without its chatter."""

import contextlib
import io
import tempfile
from collections.abc import Callable

import tensorflow_datasets as tfds
from absl import logging


def write_dataset(make_builder: Callable[[], tfds.core.GeneratorBasedBuilder]) -> None:
    """Writes a data set as ArrayRecord files; it appears under its name only when complete.

    Several processes may do so at once: the first to finish wins, and the others' copies, which
    hold the same, are dropped.
    """
    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        builder = make_builder()
        # Nothing is downloaded, yet TFDS says that it is and makes a directory for it.
        with tempfile.TemporaryDirectory() as unused, contextlib.redirect_stdout(io.StringIO()):
            try:
                builder.download_and_prepare(download_dir=unused, file_format="array_record")
            except OSError:
                if not builder.data_path.exists():  # else another process was faster
                    raise
    finally:
        logging.set_verbosity(verbosity)
