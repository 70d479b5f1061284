"""Reads the arrays of a PyTorch or safetensors file, as the usual training programs nest them.

A checkpoint may be the arrays by name, or a dictionary that holds them beside an optimizer,
counters and averaged weights; the names may carry the prefixes of wrappers such as DataParallel.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scratchdet_jax.errors import UserError, one_line

# Where programs put the arrays, the most specific name first.
_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module")
_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged)($|[._])")  # a moving average of the weights
_TRANSPARENT = ("module", "_orig_mod")  # DataParallel's and torch.compile's, at any depth
_PREFIXES = ("model", "net", "network", "detector", "model_ema", "ema_model", "ema")  # in front
_MAX_DEPTH = 4


class Unwrapped(NamedTuple):
    """The arrays of a checkpoint without the wrapping of the program that wrote it.

    Attributes:
        arrays: arrays or tensors by name; scalars, which only count, are not among them.
        found: where they were, which prefixes were removed and what was left out, in one line; ""
            if the checkpoint was the arrays by name and nothing else.
        mmdetection: the version of mmdetection that wrote it, if it says so; "" otherwise.
    """

    arrays: dict[str, Any]
    found: str
    mmdetection: str = ""


def read_arrays(path: Path) -> Unwrapped:
    """The arrays of a checkpoint by name, float32; nothing in the file is executed.

    A name that ends in .safetensors is read by that library, any other by PyTorch. The arrays may
    be nested and prefixed as training programs do it (see `unwrap`).

    Raises:
        UserError: the library is not installed, or the file does not hold arrays by name.
    """
    read = _read_safetensors if path.suffix == ".safetensors" else _read_torch
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    content = read(path)
    try:
        unwrapped = unwrap(content)
    except ValueError as error:
        raise UserError(f"{path} {error}") from None
    arrays = {name: np.asarray(_plain(a), np.float32) for name, a in unwrapped.arrays.items()}
    return unwrapped._replace(arrays=arrays)


def _plain(array: Any) -> Any:
    """A tensor as an array: NumPy cannot read PyTorch's bfloat16, nor tensors with gradients."""
    return array.detach().float().numpy() if hasattr(array, "detach") else array


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors.flax import load_file  # unlike safetensors.numpy, it knows bfloat16
    except ImportError:
        raise UserError(
            f"reading {path.name} needs the safetensors library: pip install safetensors"
        ) from None
    try:
        return load_file(path)
    except Exception as error:  # the library's own, or NumPy's about an unknown type
        raise UserError(
            f"{path} is not a safetensors file ({one_line(error)}): download or save it again"
        ) from None


def _read_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(
            "importing PyTorch weights needs PyTorch: pip install -r requirements-torch.txt"
        ) from None
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's reader lets pass whatever a damaged file causes
        unsafe = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        reason = f"it contains {unsafe[1]}" if unsafe else one_line(str(error).split(". ")[0])
        raise UserError(
            f"{path} is not a PyTorch checkpoint of plain tensors ({reason}): name a file written "
            "by torch.save(model.state_dict(), …)"
        ) from None


def _numpy_scalars() -> list[Any]:
    """What PyTorch must let pass for NumPy numbers, as in mmdetection's `meta`; nothing else.

    NumPy 1 called the same function numpy.core.multiarray.scalar.
    """
    scalar = np.float64(0).__reduce__()[0]
    types = {np.dtype(code) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"}
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *{type(t) for t in types}]


def unwrap(content: Any) -> Unwrapped:
    """Finds the dictionary of arrays in a checkpoint and removes the prefixes of its names.

    The arrays may be nested under the usual keys (`state_dict`, `model`, `net` …). Their names may
    contain DataParallel's `module.` and torch.compile's `_orig_mod.`, or begin with `model.` and
    the like. Of plain and averaged weights (`model_ema`), the plain ones are taken.

    Args:
        content: what the file holds; arrays and tensors are told by their `shape` and `dtype`.

    Raises:
        ValueError: there is no dictionary of arrays, or there are several that are equally likely;
            the message, to follow the file's name, says what was found and what is needed.
    """
    meta = content.get("meta") if isinstance(content, Mapping) else None
    version = meta.get("mmdet_version", "") if isinstance(meta, Mapping) else ""
    path, left_out = [], []
    while len(path) < _MAX_DEPTH and (inside := _inside(content)):
        if _is_state(content) and not set(inside) & set(_KEYS):
            break
        key = _choose(inside)
        left_out += [other for other in inside if other != key]
        path.append(key)
        content = content[key]
    if not _is_state(content):
        raise ValueError(
            f"holds no arrays by name, but {_described(content)}: it must be a state dict, as "
            "torch.save(model.state_dict(), …) writes it, or a dictionary with one under "
            f"{', '.join(_KEYS[:-1])} or {_KEYS[-1]}"
        )
    arrays, prefixes, others = _without_prefixes(
        {name: value for name, value in content.items() if _is_array(value)}
    )
    found = [f"the weights are under {'/'.join(path)}"] if path else []
    found += [f"removed from the names: {', '.join(prefixes)}"] if prefixes else []
    found += [f"left out: {_some(left_out + others)}"] if left_out + others else []
    return Unwrapped(arrays, "; ".join(found), str(version))


def _is_array(value: Any) -> bool:
    if isinstance(value, np.generic) or not hasattr(value, "dtype"):
        return False
    return len(getattr(value, "shape", ())) > 0


def _is_state(content: Any) -> bool:
    """Whether this is a dictionary with arrays by name."""
    return isinstance(content, Mapping) and any(
        isinstance(name, str) and _is_array(value) for name, value in content.items()
    )


def _inside(content: Any, depth: int = _MAX_DEPTH) -> list[str]:
    """Keys of the dictionaries in this one that hold arrays, themselves or under one of `_KEYS`."""
    if not isinstance(content, Mapping) or depth == 0:
        return []
    return [
        key
        for key, value in content.items()
        if isinstance(key, str)
        and (_is_state(value) or not set(_inside(value, depth - 1)).isdisjoint(_KEYS))
    ]


def _choose(keys: list[str]) -> str:
    """The key of the model's weights among those of several dictionaries with arrays."""
    plain = [key for key in keys if not _AVERAGED.search(key)] or keys
    known = [key for key in _KEYS if key in plain]
    if not known and len(plain) > 1:
        raise ValueError(
            f"holds several dictionaries of arrays, {_some(plain)}: save the detector's alone, by "
            "torch.save(detector.state_dict(), …)"
        )
    return (known or plain)[0]


def _without_prefixes(arrays: dict[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """The arrays by shorter names, the prefixes removed, and the names of those left out."""
    averaged = [name for name in arrays if _AVERAGED.search(name.split(".")[0])]
    left_out = averaged if len(averaged) < len(arrays) else []
    prefixes, shorter = [], {}
    for name in (name for name in arrays if name not in left_out):
        parts = name.split(".")
        prefixes += [f"{part}." for part in _TRANSPARENT if part in parts]
        shorter[".".join(part for part in parts if part not in _TRANSPARENT)] = arrays[name]
    if len(shorter) + len(left_out) < len(arrays):
        raise ValueError(
            "holds two arrays of one name, but for the prefixes of wrappers: save the detector's "
            "alone, by torch.save(detector.state_dict(), …)"
        )
    while prefix := _prefix(shorter):
        prefixes.append(prefix)
        left_out += [name for name in shorter if not name.startswith(prefix)]
        shorter = {n.removeprefix(prefix): a for n, a in shorter.items() if n.startswith(prefix)}
    return shorter, sorted(set(prefixes)), left_out


def _prefix(names: Mapping[str, Any]) -> str:
    """The one of `_PREFIXES` that most names begin with, with its dot; "" if none does."""
    counts = {f"{p}.": sum(name.startswith(f"{p}.") for name in names) for p in _PREFIXES}
    best = max(counts, key=counts.get)
    return best if counts[best] else ""


def _described(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    return f"the keys {_some(list(content))}" if content else "nothing"


def _some(names: list[Any], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(str, names[:limit])) + more
