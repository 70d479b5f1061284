"""An exported detector: one file that holds its program, its weights and what they mean.

The file is an archive of NumPy's (.npz: a ZIP without compression), which tools/export.py writes
and `numpy.load` opens without pickle:

- metadata.json: classes, thresholds, sizes, inputs, outputs, origin, config, names of the weights
- function.bin: the program, as `jax.export` serialises it: (weights by name, images, sizes) →
  {"boxes", "scores", "labels"}
- an array for each weight, such as params/root/conv1/kernel.npy
"""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from scratchdet_jax.errors import UserError, one_line
from scratchdet_jax.run.checkpoints import RunInfo

FORMAT, VERSION = "scratchdet_jax export", 1
METADATA, FUNCTION = "metadata.json", "function.bin"


class ExportedRun(NamedTuple):
    """The content of an exported file.

    Attributes:
        path: the file.
        metadata: the content of metadata.json.
        function: the serialised program.
        weights: arrays by name, such as "params/root/conv1/kernel".
    """

    path: Path
    metadata: dict[str, Any]
    function: bytes
    weights: dict[str, np.ndarray]

    @property
    def info(self) -> RunInfo:
        """Returns the config that the detector was trained with, and its classes."""
        return RunInfo.from_json(self.metadata)

    @property
    def step(self) -> int:
        """Returns the step of the checkpoint that was exported."""
        return self.metadata["origin"]["step"]

    @property
    def variables(self) -> dict[str, Any]:
        """Returns the weights as `params` and `batch_stats`."""
        return nested_weights(self.weights)


def nested_weights(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Returns weights by name as `params` and `batch_stats`."""
    return {"batch_stats": {}, **traverse_util.unflatten_dict(dict(weights), sep="/")}


def read_export(path: Path) -> ExportedRun:
    """Reads an exported file, and compares everything in it with its checksums (CRC-32).

    Raises:
        UserError: it is not an exported file, of a newer format, or damaged.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            metadata = json.loads(archive.read(METADATA))
            if metadata["format"] != FORMAT or metadata["version"] > VERSION:
                raise ValueError(f"{METADATA} has another format or a newer version")
            weights = {
                name: np.lib.format.read_array(io.BytesIO(archive.read(f"{name}.npy")))
                for name in metadata["weights"]
            }
            return ExportedRun(path, metadata, archive.read(FUNCTION), weights)
    except Exception as error:  # another file or damage raises anything
        raise UserError(
            f"{path} is not an exported detector that this version reads, or it is damaged "
            f"({one_line(error)}): copy it again, update scratchdet_jax, or make another one with "
            "scratchdet export"
        ) from None
