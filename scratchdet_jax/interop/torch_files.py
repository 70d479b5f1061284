"""Reads the arrays of a PyTorch or safetensors file; nothing in the file is executed."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scratchdet_jax.errors import UserError, one_line

_KEYS = ("state_dict", "model_state_dict", "model")  # where training programs put the arrays
_DATA_PARALLEL = "module."  # in front of every name in a checkpoint of nn.DataParallel


class Weights(NamedTuple):
    """The arrays of a checkpoint.

    Attributes:
        arrays: float32 by name; scalars, which only count, are not among them.
        mmdetection: the version of mmdetection that wrote the file, if it says so; "" otherwise.
    """

    arrays: dict[str, np.ndarray]
    mmdetection: str = ""


def read_arrays(path: Path) -> Weights:
    """Reads a checkpoint: a state dict, or a dictionary with one under one of `_KEYS`.

    A name that ends in .safetensors is read by that library, any other by PyTorch.

    Raises:
        UserError: the library is not installed, or the file does not hold arrays by name.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    read = _read_safetensors if path.suffix == ".safetensors" else _read_torch
    try:
        content = read(path)
    except ImportError as error:
        raise UserError(
            f"reading {path.name} needs {error.name}: pip install safetensors or, for files of "
            "PyTorch, pip install -r requirements-torch.txt"
        ) from None
    except Exception as error:  # whatever a damaged file causes in the library
        unsafe = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        reason = f"it contains {unsafe[1]}" if unsafe else one_line(str(error).split(". ")[0])
        raise UserError(
            f"{path} is not a checkpoint of plain tensors ({reason}): name a file written by "
            "torch.save(model.state_dict(), …) or by safetensors"
        ) from None
    state = _state(content)
    if not state:
        found = list(content) if isinstance(content, Mapping) else type(content).__name__
        raise UserError(
            f"{path} holds no arrays by name, but {one_line(found, 100)}: it must be a state dict, "
            "as torch.save(model.state_dict(), …) writes it, or a dictionary with one under "
            f"{', '.join(_KEYS[:-1])} or {_KEYS[-1]}"
        )
    if all(name.startswith(_DATA_PARALLEL) for name in state):
        state = {name.removeprefix(_DATA_PARALLEL): array for name, array in state.items()}
    arrays = {name: np.asarray(_plain(array), np.float32) for name, array in state.items()}
    meta = content.get("meta")
    version = meta.get("mmdet_version", "") if isinstance(meta, Mapping) else ""
    return Weights(arrays, str(version))


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors.flax import load_file  # unlike safetensors.numpy, it knows bfloat16

    return load_file(path)


def _read_torch(path: Path) -> Any:
    import torch

    with torch.serialization.safe_globals(_numpy_scalars()):
        return torch.load(path, map_location="cpu", weights_only=True)


def _numpy_scalars() -> list[Any]:
    """Returns what PyTorch must allow for NumPy numbers, as in mmdetection's `meta`; nothing else.

    NumPy 1 called the same function numpy.core.multiarray.scalar.
    """
    scalar = np.float64(0).__reduce__()[0]
    types = {np.dtype(code) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"}
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *{type(t) for t in types}]


def _state(content: Any) -> dict[str, Any]:
    """Returns the arrays by name, from the dictionary itself or from that under one of `_KEYS`."""
    if not isinstance(content, Mapping):
        return {}
    inside = (content[key] for key in _KEYS if isinstance(content.get(key), Mapping))
    state = next(inside, content)
    return {
        name: value
        for name, value in state.items()
        if isinstance(name, str) and getattr(value, "ndim", 0) > 0
    }


def _plain(array: Any) -> Any:
    """Returns a tensor as an array: NumPy cannot read bfloat16, nor tensors with gradients."""
    return array.detach().float().numpy() if hasattr(array, "detach") else array
