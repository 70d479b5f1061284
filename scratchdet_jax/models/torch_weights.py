"""PyTorch's names and layouts of a detector's weights, for importing published checkpoints.

Two formats, told apart by their names:

- "mmdetection": the authors' release of ScratchDet-300 and -512, a whole detector:
  `backbone.conv1` … `conv3`, `bn1` … `bn3` (root block), `layer1` … `layer8` (stages and extra
  blocks), `conv4`, `conv5` (last convolutions at 512), `bbox_head.cls_convs` and `reg_convs`.
- "torchvision": ImageNet classifiers `resnet18` … `resnet101` (`conv1`, `bn1`, `layer1` … `layer4`)
  and `vgg16` (`features`, `classifier`): a backbone alone. `vgg16`'s fully connected layers become
  fc6 and fc7 by decimation (Liu et al. 2016 §3.1): every fourth unit, and every third row and
  column of fc6's 7×7 windows.
"""

import re
from collections.abc import Mapping
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
_CLASSIFIER = re.compile(r"fc\.|classifier\.6\.")  # of ImageNet's classes: not part of a backbone
_XYWH_TO_YXHW = (1, 0, 3, 2)


class Imported(NamedTuple):
    """A model's variables with those of a checkpoint in them.

    Attributes:
        variables: `params` and `batch_stats`, NumPy arrays.
        source: "mmdetection" or "torchvision".
        taken: (our name, PyTorch's name, shape) of what was copied.
        initial: names of what the checkpoint does not cover and keeps its initial value.
    """

    variables: dict[str, Any]
    source: str
    taken: list[tuple[str, str, tuple[int, ...]]]
    initial: list[str]


def convert(state: Mapping[str, np.ndarray], initial: Mapping[str, Any]) -> Imported:
    """Puts a PyTorch state dict into a model's variables.

    Args:
        state: arrays by PyTorch's names, as `state_dict()` gives them.
        initial: `params` and `batch_stats` of the model, built for this checkpoint.

    Raises:
        UserError: the format is neither of the two, or names or shapes differ; lists them.
    """
    state = {
        name.removeprefix("module."): np.asarray(value)
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }
    source, find = _format(state)
    ours = traverse_util.flatten_dict(dict(initial))
    last = _last_convolutions(ours)
    result, taken, kept, problems, used = dict(ours), [], [], [], set()
    for name, value in ours.items():
        if source == "torchvision" and _only_in_detectors(name[1]):
            kept.append("/".join(name[1:]))
            continue
        theirs = f"{find(name[1:-1], last)}.{_LEAVES[name[-1]]}"
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
            f"the checkpoint ({source} format) and config.model do not agree in {len(problems)} "
            "arrays; name the config that belongs to the checkpoint:\n" + "\n".join(problems)
        )
    nested = traverse_util.unflatten_dict(result)
    variables = {group: nested.get(group, {}) for group in initial}
    return Imported(variables, source, taken, kept)


def number_of_classes(state: Mapping[str, np.ndarray]) -> int | None:
    """Classes (without background) that an mmdetection checkpoint's head tells; None for others."""
    boxes, logits = (
        next((np.shape(value)[0] for name, value in state.items() if name.endswith(ending)), None)
        for ending in ("bbox_head.reg_convs.0.0.weight", "bbox_head.cls_convs.0.0.weight")
    )
    if boxes is None or logits is None or logits % (boxes // 4):
        return None
    return logits // (boxes // 4) - 1


def _format(state: Mapping[str, np.ndarray]) -> tuple[str, Any]:
    if any(name.startswith(("backbone.", "bbox_head.")) for name in state):
        return "mmdetection", _mmdetection_name
    if "features.0.weight" in state:
        if np.ndim(state.get("features.1.weight", 0)):
            raise UserError(
                "this is torchvision's vgg16_bn, which cannot be imported: take its vgg16"
            )
        return "torchvision", _vgg_name
    if "conv1.weight" in state and "layer1.0.conv1.weight" in state:
        return "torchvision", _resnet_name
    names = ", ".join(list(state)[:3]) or "nothing"
    raise UserError(
        "the checkpoint is neither a ScratchDet of the mmdetection release (backbone.…, "
        f"bbox_head.…) nor torchvision's vgg16 or resnet: it begins with {names}"
    )


def _last_convolutions(names: Mapping[Name, Any]) -> str:
    """The name of the last extra block if it is two convolutions in a row (at 512), else ""."""
    extras = sorted({name[1] for name in names if name[1].startswith("extra")})
    if not extras:
        return ""
    kernel = names.get(("params", extras[-1], "conv2", "kernel"))
    return extras[-1] if kernel is not None and kernel.shape[0] == 4 else ""


def _mmdetection_name(path: Name, last: str) -> str:
    if path[0] == "head":
        part, kind = path[2].split("_")
        convolutions = "cls_convs" if part == "class" else "reg_convs"
        level = int(path[1].removeprefix("level")) - 1
        return f"bbox_head.{convolutions}.{level}.{0 if kind == 'conv' else 1}"
    if path[0] == last:
        return f"backbone.{_layer(path[1], 3)}"
    return f"backbone.{_resnet_name(path, last)}"


def _resnet_name(path: Name, last: str) -> str:
    if path[0] in ("root", "stem"):
        return _layer(path[1], 0)
    if path[0].startswith("extra"):
        return f"layer{int(path[0].removeprefix('extra')) + 4}.0.{_layer(path[1], 0)}"
    if not path[0].startswith("stage"):
        return "/".join(path)  # nothing of the kind there: reported as missing
    stage = int(path[0].removeprefix("stage"))
    block = int(path[1].removeprefix("block")) - 1
    return f"layer{stage}.{block}.{_layer(path[2], 0)}"


def _layer(name: str, after: int) -> str:
    """conv1 → conv1, norm1 → bn1 (numbers begin `after` later), projection → downsample.0."""
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
    before = sum(2 * count + 1 for count, _ in BLOCKS[: block - 1])  # ReLUs and poolings count
    return f"features.{before + 2 * (number - 1)}"


def _only_in_detectors(part: str) -> bool:
    """Whether an ImageNet classifier has no such part."""
    return part in ("head", "conv4_3_l2") or part.startswith("extra")


def _layout(name: Name, found: np.ndarray) -> np.ndarray:
    """A PyTorch array in the layout of our variable `name`."""
    if name[1] in ("fc6", "fc7") and found.shape[0] == 4096:
        found = _decimate(name, found)
    if name[1] == "head" and name[3].startswith("box_"):  # (x, y, w, h) for each anchor
        by_anchor = found.reshape(-1, 4, *found.shape[1:])
        found = by_anchor[:, _XYWH_TO_YXHW].reshape(found.shape)
    return found.transpose(2, 3, 1, 0) if found.ndim == 4 else found


def _decimate(name: Name, found: np.ndarray) -> np.ndarray:
    """fc6 and fc7 of ImageNet's VGG-16 as convolutions of a quarter of the units."""
    if name[-1] == "bias":
        return found[::4]
    if name[1] == "fc6":
        return found.reshape(4096, 512, 7, 7)[::4, :, ::3, ::3]
    return found[::4, ::4, None, None]
