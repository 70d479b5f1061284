"""PyTorch's names and layouts of a detector's weights, for importing published checkpoints.

The kinds of checkpoint are distinguished by the names of their arrays:

- "mmdetection": a complete detector, the authors' release of ScratchDet-300 and -512:
  `backbone.conv1` … `conv3`, `bn1` … `bn3` (root block), `layer1` … `layer8` (stages and extra
  blocks), `conv4`, `conv5` (last convolutions at 512), `bbox_head.cls_convs` and `reg_convs`,
  with BatchNorm in the head or without.
- "mmdetection SSD": SSD with VGG-16 as mmdetection 2 and 3 have it, with `neck.extra_layers`, or
  before version 2.14 with `backbone.extra`. The background is their last class, and our first.
- "ssd.pytorch": the same network (`vgg`, `extras`, `loc`, `conf`, `L2Norm`).
- "torchvision SSD": the same network, torchvision's `ssd300_vgg16`. Its 91 classes are COCO's ids,
  of which ten are unused.
- "torchvision": a backbone alone, the ImageNet classifiers `resnet18` … `resnet101` (`conv1`,
  `bn1`, `layer1` … `layer4`), `vgg16` and `vgg16_bn` (`features`, `classifier`). The fully
  connected layers of VGG become fc6 and fc7 by decimation (Liu et al. 2016 §3.1): every fourth
  unit, and every third row and column of fc6's 7×7 windows. `vgg16_bn` has convolutions with
  biases, which BatchNorm's running mean absorbs here; its fc6 and fc7 have no BatchNorm, so ours
  begins anew and their biases are dropped.

`_FORMATS` is the table of them; a further format is one row and its function of names.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from scratchdet_jax.data import coco_classes
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
        source: name of the format, "mmdetection" and so on.
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
        state: arrays by PyTorch's names, as `torch_files.read_arrays` gives them.
        initial: `params` and `batch_stats` of the model, built for this checkpoint.

    Raises:
        UserError: the format is unknown, or names or shapes differ; the message lists them.
    """
    state = {
        name: np.asarray(value)
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }
    found_format = _format(state)
    state = found_format.prepare(state)
    source, torch_name = found_format.source, found_format.name
    classes = _classes(state, found_format)
    ours = traverse_util.flatten_dict(dict(initial))
    last = _last_convolutions(ours)
    result, taken, kept, problems, used = dict(ours), [], [], [], set()
    for name, value in ours.items():
        if not found_format.detector and _only_in_detectors(name[1]):
            kept.append("/".join(name[1:]))
            continue
        theirs = _full_name(torch_name(name[1:-1], last), _LEAVES[name[-1]])
        if theirs not in state:
            problems.append(f"  missing     {theirs} (for {'/'.join(name[1:])} {value.shape})")
            continue
        used.add(theirs)
        found = _layout(name, state[theirs], classes)
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
        if name not in used and (found_format.detector or not _CLASSIFIER.match(name))
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


def check_version(state: Mapping[str, np.ndarray], version: str) -> None:
    """Raises UserError for an SSD of mmdetection 1, which later versions would read differently.

    Its background is the first class and its anchors are rounded; the names of its arrays are those
    of mmdetection 2 before 2.14, which an unknown `version`, "", is taken to be.
    """
    if _format(state).source == "mmdetection SSD" and version.startswith(("0.", "1.")):
        raise UserError(
            f"this SSD is of mmdetection {version}, whose order of classes and anchors differ: "
            "use a checkpoint of mmdetection 2 or 3"
        )


def number_of_classes(state: Mapping[str, np.ndarray]) -> int | None:
    """Classes, without background, that a detector's head gives; None for a backbone alone.

    Raises:
        UserError: the format is unknown.
    """
    classes = _classes(state, _format(state))
    return None if classes is None else len(classes.rows) - 1


class _Classes(NamedTuple):
    """The classes of a checkpoint's head.

    Attributes:
        outputs: how many it has for each anchor.
        rows: the number among them of each of our classes, background first.
    """

    outputs: int
    rows: Sequence[int]


def _classes(state: Mapping[str, np.ndarray], found: "_Format") -> _Classes | None:
    """The classes of the head; None if there is none, or none that can be."""
    logits, boxes = (
        state.get(_full_name(found.name(("head", "level1", f"{part}_conv"), ""), "weight"))
        for part in ("class", "box")
    )
    if not found.detector or logits is None or boxes is None or len(boxes) < 4:
        return None
    outputs, left_over = divmod(len(logits), len(boxes) // 4)
    return None if left_over else _Classes(outputs, found.rows(outputs))


def _full_name(layer: str, leaf: str) -> str:
    """The name of a layer's array; torchvision's SSD joins one name by an underscore."""
    return f"{layer}{leaf}" if layer.endswith("_") else f"{layer}.{leaf}"


def _last_convolutions(names: Mapping[Name, Any]) -> str:
    """Name of the last extra block if it is a pair of convolutions (at 512), else ""."""
    extras = sorted({name[1] for name in names if name[1].startswith("extra")})
    if not extras:
        return ""
    kernel = names.get(("params", extras[-1], "conv2", "kernel"))
    return extras[-1] if kernel is not None and kernel.shape[0] == 4 else ""


def _mmdetection_name(path: Name, last: str) -> str:
    """`last` is the name of the last convolutions, as `_last_convolutions` gives it."""
    if path[0] == "head":
        return f"{_bbox_head(path)}.{0 if path[2].endswith('_conv') else 1}"
    return _mmdetection_name_without_head_norm(path, last)


def _mmdetection_name_without_head_norm(path: Name, last: str) -> str:
    if path[0] == "head":
        return _bbox_head(path)
    if path[0] == last:
        return f"backbone.{_layer(path[1], 3)}"
    return f"backbone.{_resnet_name(path)}"


def _bbox_head(path: Name) -> str:
    return _predictor(path, "bbox_head.cls_convs.{}", "bbox_head.reg_convs.{}")


def _predictor(path: Name, classes: str, boxes: str) -> str:
    """The name of head/levelN/class_conv or box_conv, from the names of both for a level."""
    name = classes if path[2].startswith("class_") else boxes
    return name.format(int(path[1].removeprefix("level")) - 1)


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
    kind = "bn" if name.startswith("norm") else "conv"
    return f"{kind}{int(name.removeprefix('norm').removeprefix('conv')) + after}"


def _vgg_name(path: Name, last: str) -> str:
    if path[0] in ("fc6", "fc7"):
        return f"classifier.{0 if path[0] == 'fc6' else 3}"
    number = _vgg_layer(path[0])
    return "/".join(path) if number is None else f"features.{number}"


def _vgg_layer(name: str) -> int | None:
    """The number of conv1_1 … conv5_3, fc6 or fc7 in SSD's VGG-16; None for another name.

    ReLUs and poolings are numbered too.
    """
    if name in ("fc6", "fc7"):
        return 31 if name == "fc6" else 33
    match = re.fullmatch(r"conv(\d)_(\d)", name)
    if match is None:
        return None
    block, number = map(int, match.groups())
    return sum(2 * count + 1 for count, _ in BLOCKS[: block - 1]) + 2 * (number - 1)


def _vgg_bn_name(path: Name, last: str) -> str:
    if path[0] in ("fc6", "fc7"):
        return _vgg_name(path, last)
    match = re.fullmatch(r"conv(\d)_(\d)(_norm)?", path[0])
    if match is None:
        return "/".join(path)
    block, number = int(match[1]), int(match[2])
    before = sum(3 * count + 1 for count, _ in BLOCKS[: block - 1]) + 3 * (number - 1)
    return f"features.{before + bool(match[3])}"


def _absorb_biases(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Moves the biases of vgg16_bn's convolutions into the running means; drops those of fc6, 7."""
    absorbed = dict(state)
    for name in state:
        match = re.fullmatch(r"features\.(\d+)\.running_mean", name)
        bias = match and absorbed.pop(f"features.{int(match[1]) - 1}.bias", None)
        if bias is not None:
            absorbed[name] = state[name] - bias
    for name in ("classifier.0.bias", "classifier.3.bias"):
        absorbed.pop(name, None)
    return absorbed


def _extra_layer(path: Name) -> tuple[int, int] | None:
    """(block, convolution) of extraN/convM, both from 0; None for another path."""
    match = re.fullmatch(r"extra(\d)/conv(\d)", "/".join(path))
    return match and (int(match[1]) - 1, int(match[2]) - 1)


def _mmdetection_ssd_name(path: Name, last: str) -> str:
    if path[0] == "head":
        return f"{_bbox_head(path)}.0"
    if path[0] == "conv4_3_l2":
        return "neck.l2_norm"
    if extra := _extra_layer(path):
        return "neck.extra_layers.{}.{}.conv".format(*extra)
    return f"backbone.{_ssd_vgg_name(path)}"


def _older_mmdetection_ssd_name(path: Name, last: str) -> str:
    if path[0] == "head":
        return _bbox_head(path)
    if path[0] == "conv4_3_l2":
        return "backbone.l2_norm"
    if extra := _extra_layer(path):
        return f"backbone.extra.{2 * extra[0] + extra[1]}"
    return f"backbone.{_ssd_vgg_name(path)}"


def _ssd_pytorch_name(path: Name, last: str) -> str:
    if path[0] == "head":
        return _predictor(path, "conf.{}", "loc.{}")
    if path[0] == "conv4_3_l2":
        return "L2Norm"
    if extra := _extra_layer(path):
        return f"extras.{2 * extra[0] + extra[1]}"
    return _ssd_vgg_name(path).replace("features.", "vgg.")


def _torchvision_ssd_name(path: Name, last: str) -> str:
    if path[0] == "head":
        classes, boxes = "head.classification_head", "head.regression_head"
        return _predictor(path, f"{classes}.module_list.{{}}", f"{boxes}.module_list.{{}}")
    if path[0] == "conv4_3_l2":
        return "backbone.scale_"
    if extra := _extra_layer(path):
        return f"backbone.extra.{extra[0] + 1}.{2 * extra[1]}"
    if path[0] in ("fc6", "fc7"):
        return f"backbone.extra.0.7.{1 if path[0] == 'fc6' else 3}"
    number = _vgg_layer(path[0])
    if number is not None and path[0].startswith("conv5_"):  # after the fourth pooling
        return f"backbone.extra.0.{number - sum(2 * count + 1 for count, _ in BLOCKS[:4]) + 1}"
    return f"backbone.{_ssd_vgg_name(path)}"


def _ssd_vgg_name(path: Name) -> str:
    number = _vgg_layer(path[0])
    return "/".join(path) if number is None else f"features.{number}"


def _background_last(outputs: int) -> Sequence[int]:
    return [outputs - 1, *range(outputs - 1)]


def _coco_ids(outputs: int) -> Sequence[int]:
    return [0, *coco_classes.IDS.values()] if outputs == 91 else range(outputs)


class _Format(NamedTuple):
    """A naming of arrays.

    Attributes:
        source: its name.
        fits: whether a checkpoint has it.
        name: its name for a path of our names, without the last part.
        detector: whether it is a complete detector.
        rows: from the number of its head's outputs for an anchor, `_Classes.rows`.
        prepare: makes arrays that have a counterpart in our model.
    """

    source: str
    fits: Callable[[Mapping[str, np.ndarray]], bool]
    name: Callable[[Name, str], str]
    detector: bool = True
    rows: Callable[[int], Sequence[int]] = range
    prepare: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = lambda state: state


def _has(*names: str) -> Callable[[Mapping[str, np.ndarray]], bool]:
    return lambda state: set(names) <= state.keys()


_FORMATS = (
    _Format("ssd.pytorch", _has("vgg.0.weight", "conf.0.weight"), _ssd_pytorch_name),
    _Format(
        "torchvision SSD", _has("backbone.scale_weight"), _torchvision_ssd_name, rows=_coco_ids
    ),
    _Format(
        "mmdetection SSD", _has("neck.l2_norm.weight"), _mmdetection_ssd_name, rows=_background_last
    ),
    _Format(
        "mmdetection SSD",
        _has("backbone.l2_norm.weight"),
        _older_mmdetection_ssd_name,
        rows=_background_last,
    ),
    _Format(
        "mmdetection", _has("bbox_head.cls_convs.0.weight"), _mmdetection_name_without_head_norm
    ),
    _Format(
        "mmdetection",
        lambda state: any(name.startswith(("backbone.", "bbox_head.")) for name in state),
        _mmdetection_name,
    ),
    _Format(
        "torchvision",
        _has("features.0.weight", "features.1.running_mean"),
        _vgg_bn_name,
        detector=False,
        prepare=_absorb_biases,
    ),
    _Format("torchvision", _has("features.0.weight"), _vgg_name, detector=False),
    _Format(
        "torchvision", _has("conv1.weight", "layer1.0.conv1.weight"), _resnet_name, detector=False
    ),
)


def _format(state: Mapping[str, np.ndarray]) -> _Format:
    found = next((row for row in _FORMATS if row.fits(state)), None)
    if found is None:
        names = ", ".join(list(state)[:3]) or "nothing"
        raise UserError(
            "the checkpoint is neither a ScratchDet of the mmdetection release (backbone.…, "
            "bbox_head.…), nor an SSD of mmdetection, ssd.pytorch (vgg.…, conf.…) or torchvision, "
            f"nor torchvision's vgg16, vgg16_bn or resnet: it begins with {names}"
        )
    return found


def _only_in_detectors(part: str) -> bool:
    """Whether an ImageNet classifier lacks this part."""
    return part in ("head", "conv4_3_l2", "fc6_norm", "fc7_norm") or part.startswith("extra")


def _layout(name: Name, found: np.ndarray, classes: _Classes | None) -> np.ndarray:
    """Converts a PyTorch array to the layout of our variable `name`."""
    if name[1] in ("fc6", "fc7") and found.shape[0] == 4096:
        found = _decimate(name, found)
    if name[1] == "head" and name[3].startswith("box_"):  # (x, y, w, h) for each anchor
        by_anchor = found.reshape(-1, 4, *found.shape[1:])
        found = by_anchor[:, _XYWH_TO_YXHW].reshape(found.shape)
    elif name[1] == "head" and classes is not None and len(found) % classes.outputs == 0:
        by_anchor = found.reshape(-1, classes.outputs, *found.shape[1:])
        found = by_anchor[:, classes.rows].reshape(-1, *found.shape[1:])
    return found.transpose(2, 3, 1, 0) if found.ndim == 4 else found


def _decimate(name: Name, found: np.ndarray) -> np.ndarray:
    """Converts fc6 or fc7 of ImageNet's VGG-16 to a convolution with a quarter of the units."""
    if name[-1] == "bias":
        return found[::4]
    if name[1] == "fc6":
        return found.reshape(4096, 512, 7, 7)[::4, :, ::3, ::3]
    return found[::4, ::4, None, None]
