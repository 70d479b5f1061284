"""PyTorch's names and layouts of a detector's weights, for importing published checkpoints.

There are two kinds of checkpoint, distinguished by the names of their arrays:

- "mmdetection": a complete detector, the authors' release of ScratchDet-300 and -512:
  `backbone.conv1` … `conv3`, `bn1` … `bn3` (root block), `layer1` … `layer8` (stages and extra
  blocks), `conv4`, `conv5` (last convolutions at 512), `bbox_head.cls_convs` and `reg_convs`.
- "torchvision": a backbone alone, the ImageNet classifiers `resnet18` … `resnet101` (`conv1`,
  `bn1`, `layer1` … `layer4`) and `vgg16` (`features`, `classifier`). `vgg16`'s fully connected
  layers become fc6 and fc7 by decimation (Liu et al. 2016 §3.1): every fourth unit, and every third
  row and column of fc6's 7×7 windows.

`_FORMATS` is the table of them; a further format is one row and its function of names.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from scratchdet_jax.errors import UserError
from scratchdet_jax.models.vgg import BLOCKS

Name = tuple[str, ...]

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_CLASSIFIER = re.compile(r"fc\.|classifier\.6\.")  # ImageNet's classes: not part of a backbone
_XYWH_TO_YXHW = (1, 0, 3, 2)


class Imported(NamedTuple):
    """A model's variables with a checkpoint's weights copied in.

    Attributes:
        variables: `params` and `batch_stats`, NumPy arrays.
        source: "mmdetection" or "torchvision".
        taken: (our name, PyTorch's name, shape) of each copied array.
        initial: names of the arrays that the checkpoint lacks and that keep their initial values.
    """

    variables: dict[str, Any]
    source: str
    taken: list[tuple[str, str, tuple[int, ...]]]
    initial: list[str]


def convert(state: Mapping[str, np.ndarray], initial: Mapping[str, Any]) -> Imported:
    """Copies a PyTorch state dict into a model's variables.

    Args:
        state: arrays by PyTorch's names, without prefixes (`torch_files.unwrap`).
        initial: `params` and `batch_stats` of the model, built for this checkpoint.

    Raises:
        UserError: the format is unknown, or names or shapes differ; the message lists them.
    """
    state = {
        name: np.asarray(value)
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }
    source, _, torch_name = _format(state)
    ours = traverse_util.flatten_dict(dict(initial))
    last = _last_convolutions(ours)
    result, taken, kept, problems, used = dict(ours), [], [], [], set()
    for name, value in ours.items():
        if source == "torchvision" and _only_in_detectors(name[1]):
            kept.append("/".join(name[1:]))
            continue
        theirs = f"{torch_name(name[1:-1], last)}.{_LEAVES[name[-1]]}"
        if theirs not in state:
            problems.append(f"  missing     {theirs} (for {'/'.join(name[1:])} {value.shape})")
            continue
        used.add(theirs)
        found = _layout(name, state[theirs])
        if found.shape != value.shape:
            problems.append(
                f"  shape       {theirs} {state[theirs].shape} gives {found.shape}, but "
                f"{'/'.join(name[1:])} is {value.shape}"
            )
            continue
        result[name] = np.ascontiguousarray(found, value.dtype)
        taken.append(("/".join(name[1:]), theirs, value.shape))
    problems += [
        f"  unexpected  {name} {state[name].shape}"
        for name in state
        if name not in used and not (source == "torchvision" and _CLASSIFIER.match(name))
    ]
    if problems:
        raise UserError(
            f"the checkpoint ({source} format) and config.model differ in {len(problems)} "
            f"array{'s' * (len(problems) != 1)}: use the config that belongs to the checkpoint\n"
            + "\n".join(problems)
        )
    nested = traverse_util.unflatten_dict(result)
    variables = {group: nested.get(group, {}) for group in initial}
    return Imported(variables, source, taken, kept)


def number_of_classes(state: Mapping[str, np.ndarray]) -> int | None:
    """Classes, without background, of an mmdetection checkpoint's head; None for other formats."""
    boxes, logits = (
        next((np.shape(value)[0] for name, value in state.items() if name.endswith(ending)), None)
        for ending in ("bbox_head.reg_convs.0.0.weight", "bbox_head.cls_convs.0.0.weight")
    )
    if boxes is None or logits is None or logits % (boxes // 4):
        return None
    return logits // (boxes // 4) - 1


def _last_convolutions(names: Mapping[Name, Any]) -> str:
    """Name of the last extra block if it is a `LastConvolutions` (at 512), else ""."""
    extras = sorted({name[1] for name in names if name[1].startswith("extra")})
    if not extras:
        return ""
    kernel = names.get(("params", extras[-1], "conv2", "kernel"))
    return extras[-1] if kernel is not None and kernel.shape[0] == 4 else ""


def _mmdetection_name(path: Name, last: str) -> str:
    """`last` is the name of the last convolutions, as `_last_convolutions` gives it."""
    if path[0] == "head":
        part, kind = path[2].split("_")
        convolutions = "cls_convs" if part == "class" else "reg_convs"
        level = int(path[1].removeprefix("level")) - 1
        return f"bbox_head.{convolutions}.{level}.{0 if kind == 'conv' else 1}"
    if path[0] == last:
        return f"backbone.{_layer(path[1], 3)}"
    return f"backbone.{_resnet_name(path)}"


def _resnet_name(path: Name, last: str = "") -> str:
    if path[0] in ("root", "stem"):
        return _layer(path[1], 0)
    if path[0].startswith("extra"):
        return f"layer{int(path[0].removeprefix('extra')) + 4}.0.{_layer(path[1], 0)}"
    if not path[0].startswith("stage"):
        return "/".join(path)  # has no counterpart: reported as missing
    stage = int(path[0].removeprefix("stage"))
    block = int(path[1].removeprefix("block")) - 1
    return f"layer{stage}.{block}.{_layer(path[2], 0)}"


def _layer(name: str, after: int) -> str:
    """conv1 → conv1, norm1 → bn1 (numbers raised by `after`), projection → downsample.0."""
    if name.startswith("projection"):
        return f"downsample.{int(name.endswith('_norm'))}"
    kind, number = re.fullmatch(r"(conv|norm)(\d)", name).groups()
    return f"{'bn' if kind == 'norm' else 'conv'}{int(number) + after}"


def _vgg_name(path: Name, last: str) -> str:
    if path[0] in ("fc6", "fc7"):
        return f"classifier.{0 if path[0] == 'fc6' else 3}"
    match = re.fullmatch(r"conv(\d)_(\d)", path[0])
    if match is None:
        return "/".join(path)
    block, number = map(int, match.groups())
    # ReLUs and poolings are numbered too.
    before = sum(2 * count + 1 for count, _ in BLOCKS[: block - 1])
    return f"features.{before + 2 * (number - 1)}"


class _Format(NamedTuple):
    """A naming of arrays: which checkpoints have it, and its name for a path of our names."""

    source: str
    fits: Callable[[Mapping[str, np.ndarray]], bool]
    name: Callable[[Name, str], str]


_FORMATS = (
    _Format(
        "mmdetection",
        lambda state: any(name.startswith(("backbone.", "bbox_head.")) for name in state),
        _mmdetection_name,
    ),
    _Format("torchvision", lambda state: "features.0.weight" in state, _vgg_name),
    _Format(
        "torchvision",
        lambda state: {"conv1.weight", "layer1.0.conv1.weight"} <= state.keys(),
        _resnet_name,
    ),
)


def _format(state: Mapping[str, np.ndarray]) -> _Format:
    found = next((row for row in _FORMATS if row.fits(state)), None)
    if found is None:
        names = ", ".join(list(state)[:3]) or "nothing"
        raise UserError(
            "the checkpoint is neither a ScratchDet of the mmdetection release (backbone.…, "
            f"bbox_head.…) nor torchvision's vgg16 or resnet: it begins with {names}"
        )
    if found.name is _vgg_name and np.ndim(state.get("features.1.weight", 0)):
        raise UserError("this is torchvision's vgg16_bn, which cannot be imported: use its vgg16")
    return found


def _only_in_detectors(part: str) -> bool:
    """Whether an ImageNet classifier lacks this part."""
    return part in ("head", "conv4_3_l2") or part.startswith("extra")


def _layout(name: Name, found: np.ndarray) -> np.ndarray:
    """Converts a PyTorch array to the layout of our variable `name`."""
    if name[1] in ("fc6", "fc7") and found.shape[0] == 4096:
        found = _decimate(name, found)
    if name[1] == "head" and name[3].startswith("box_"):  # (x, y, w, h) for each anchor
        by_anchor = found.reshape(-1, 4, *found.shape[1:])
        found = by_anchor[:, _XYWH_TO_YXHW].reshape(found.shape)
    return found.transpose(2, 3, 1, 0) if found.ndim == 4 else found


def _decimate(name: Name, found: np.ndarray) -> np.ndarray:
    """Converts fc6 or fc7 of ImageNet's VGG-16 to a convolution with a quarter of the units."""
    if name[-1] == "bias":
        return found[::4]
    if name[1] == "fc6":
        return found.reshape(4096, 512, 7, 7)[::4, :, ::3, ::3]
    return found[::4, ::4, None, None]
