"""PyTorch's names and layouts of a detector's weights, for importing published checkpoints.

`_FORMATS` is the table of the kinds of checkpoint, which the names of their arrays distinguish: the
authors' release of ScratchDet, SSDs of three programs, and torchvision's ImageNet classifiers
(backbones). A further format is one row and its function of names. The background is the last class
of mmdetection's SSD, and our first; the 91 classes of torchvision's SSD are COCO's ids.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from scratchdet_jax.data import coco_classes
from scratchdet_jax.errors import UserError, plural
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
_LAST = "last"  # stands for the extra block that is a `LastConvolutions`
_MMDETECTION_HEAD = ("bbox_head.cls_convs.{}", "bbox_head.reg_convs.{}")


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

    `state` holds arrays by PyTorch's names, as `torch_files.read_arrays` gives them; `initial`,
    `params` and `batch_stats` of the model, which was built for this checkpoint.

    Raises:
        UserError: the format is unknown, or names or shapes differ; the message lists them.
    """
    state = {
        name: np.asarray(value)
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }
    form = _format(state)
    state = form.prepare(state)
    classes = _classes(state, form)
    ours = traverse_util.flatten_dict(dict(initial))
    last = _last_convolutions(ours)
    result, taken, kept, problems, used = dict(ours), [], [], [], set()
    for name, value in ours.items():
        shown = "/".join(name[1:])
        if not form.detector and _only_in_detectors(name[1]):
            kept.append(shown)
            continue
        path = (_LAST, *name[2:-1]) if name[1] == last else name[1:-1]
        theirs = _full_name(form.name(path), _LEAVES[name[-1]])
        if theirs not in state:
            problems.append(f"  missing     {theirs} (for {shown} {value.shape})")
            continue
        used.add(theirs)
        found = _layout(name, state[theirs], classes)
        if found.shape != value.shape:
            problems.append(
                f"  shape       {theirs} {state[theirs].shape} gives {found.shape}, but {shown} is "
                f"{value.shape}"
            )
            continue
        result[name] = np.ascontiguousarray(found, value.dtype)
        taken.append((shown, theirs, value.shape))
    problems += [
        f"  unexpected  {name} {state[name].shape}"
        for name in state
        if name not in used and (form.detector or not _CLASSIFIER.match(name))
    ]
    if problems:
        raise UserError(
            f"the checkpoint ({form.source} format) and config.model differ in "
            f"{plural(len(problems), 'array')}: use the config that belongs to the checkpoint\n"
            + "\n".join(problems)
        )
    nested = traverse_util.unflatten_dict(result)
    variables = {group: nested.get(group, {}) for group in initial}
    return Imported(variables, form.source, taken, kept)


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
    """Returns the number of a detector's classes, without background; None for a backbone alone.

    Raises:
        UserError: the format is unknown.
    """
    classes = _classes(state, _format(state))
    return None if classes is None else len(classes[1]) - 1


def _classes(state: Mapping[str, np.ndarray], form: "_Format") -> tuple[int, Sequence[int]] | None:
    """Returns the outputs of the head for an anchor, and which is each of our classes' output.

    The background is the first class. None stands for a head that is missing or impossible.
    """
    logits, boxes = (
        state.get(_full_name(form.name(("head", "level1", f"{part}_conv")), "weight"))
        for part in ("class", "box")
    )
    if not form.detector or logits is None or boxes is None or len(boxes) < 4:
        return None
    outputs, left_over = divmod(len(logits), len(boxes) // 4)
    return None if left_over else (outputs, form.rows(outputs))


def _full_name(layer: str, leaf: str) -> str:
    """Returns the name of a layer's array; torchvision's SSD joins one name by an underscore."""
    return f"{layer}{leaf}" if layer.endswith("_") else f"{layer}.{leaf}"


def _last_convolutions(names: Mapping[Name, Any]) -> str:
    """Returns the name of the last extra block if it is two convolutions (at 512), else ""."""
    last = max((name[1] for name in names if name[1].startswith("extra")), default="")
    kernel = names.get(("params", last, "conv2", "kernel"))
    return last if kernel is not None and kernel.shape[0] == 4 else ""


def _vgg_layers(norms: bool) -> dict[str, int]:
    """Numbers the layers of SSD's VGG-16 as PyTorch does, which counts ReLUs and poolings."""
    numbers, number = {}, 0
    for block, (count, _) in enumerate(BLOCKS, start=1):
        for i in range(1, count + 1):
            numbers[f"conv{block}_{i}"] = number
            if norms:
                numbers[f"conv{block}_{i}_norm"] = number + 1
            number += 3 if norms else 2
        number += 1
    return numbers | {"fc6": number, "fc7": number + 2}


_VGG, _VGG_BN = _vgg_layers(norms=False), _vgg_layers(norms=True)


def _head(path: Name, classes: str, boxes: str) -> str:
    """Returns the name of head/levelN/class_conv or box_conv; {} in both names is the level."""
    name = classes if path[2].startswith("class_") else boxes
    return name.format(int(path[1].removeprefix("level")) - 1)


def _mmdetection_name(path: Name) -> str:
    if path[0] == "head":
        return f"{_plain_mmdetection_name(path)}.{0 if path[2].endswith('_conv') else 1}"
    return _plain_mmdetection_name(path)


def _plain_mmdetection_name(path: Name) -> str:
    """Returns a name of the release with a head without BatchNorm."""
    if path[0] == "head":
        return _head(path, *_MMDETECTION_HEAD)
    if path[0] == _LAST:
        return f"backbone.{_layer(path[1], 3)}"
    return f"backbone.{_resnet_name(path)}"


def _resnet_name(path: Name) -> str:
    if path[0] in ("root", "stem"):
        return _layer(path[1], 0)
    if found := re.fullmatch(r"extra(\d)/(\w+)", "/".join(path)):
        return f"layer{int(found[1]) + 4}.0.{_layer(found[2], 0)}"
    if found := re.fullmatch(r"stage(\d)/block(\d+)/(\w+)", "/".join(path)):
        return f"layer{found[1]}.{int(found[2]) - 1}.{_layer(found[3], 0)}"
    return "/".join(path)  # has no counterpart: reported as missing


def _layer(name: str, after: int) -> str:
    """Returns bn1 for norm1 (numbers raised by `after`), downsample.0 for projection."""
    if name.startswith("projection"):
        return f"downsample.{int(name.endswith('_norm'))}"
    kind = "bn" if name.startswith("norm") else "conv"
    return f"{kind}{int(name.removeprefix('norm').removeprefix('conv')) + after}"


def _vgg_name(numbers: Mapping[str, int]) -> Callable[[Name], str]:
    """Returns the names of torchvision's vgg16 or vgg16_bn, from the numbers of its features."""
    features = {name: f"features.{number}" for name, number in numbers.items()}
    names = features | {"fc6": "classifier.0", "fc7": "classifier.3"}
    return lambda path: names.get(path[0], "/".join(path))


def _ssd_name(
    head: tuple[str, str],
    l2_norm: str,
    extra: Callable[[int, int], str],
    layer: Callable[[int], str],
) -> Callable[[Name], str]:
    """Returns the names of an SSD with VGG-16.

    Args:
        head: names of the class and the box predictor of a level, {} from 0.
        l2_norm: the layer after conv4_3.
        extra: (block, convolution), both from 0, to the name of an extra convolution.
        layer: the number of a layer, as in `_VGG`, to its name.
    """

    def name(path: Name) -> str:
        if path[0] == "head":
            return _head(path, *head)
        if path[0] == "conv4_3_l2":
            return l2_norm
        if found := re.fullmatch(r"extra(\d)/conv(\d)", "/".join(path)):
            return extra(int(found[1]) - 1, int(found[2]) - 1)
        return layer(_VGG[path[0]]) if path[0] in _VGG else "/".join(path)

    return name


def _torchvision_layer(number: int) -> str:
    """Returns the name of a layer of torchvision's SSD, which cuts VGG-16 after four blocks."""
    if number >= _VGG["fc6"]:
        return f"backbone.extra.0.7.{number - _VGG['fc6'] + 1}"
    if number >= _VGG["conv5_1"]:
        return f"backbone.extra.0.{number - _VGG['conv5_1'] + 1}"
    return f"backbone.features.{number}"


def _absorb_biases(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Moves the biases of vgg16_bn's convolutions into the running means.

    Those of fc6 and fc7 are dropped: our norms after them begin anew.
    """
    absorbed = dict(state)
    for name in state:
        match = re.fullmatch(r"features\.(\d+)\.running_mean", name)
        bias = match and absorbed.pop(f"features.{int(match[1]) - 1}.bias", None)
        if bias is not None:
            absorbed[name] = state[name] - bias
    for name in ("classifier.0.bias", "classifier.3.bias"):
        absorbed.pop(name, None)
    return absorbed


def _background_last(outputs: int) -> Sequence[int]:
    return [outputs - 1, *range(outputs - 1)]


def _coco_ids(outputs: int) -> Sequence[int]:
    return [0, *coco_classes.IDS.values()] if outputs == 91 else range(outputs)


class _Format(NamedTuple):
    """A kind of checkpoint.

    Attributes:
        source: its name.
        fits: whether a checkpoint is of this kind.
        name: its name of a layer, from the path of ours.
        detector: whether it is a complete detector.
        rows: from the outputs of its head for an anchor, the output of each of our classes.
        prepare: makes arrays that have a counterpart in our model.
    """

    source: str
    fits: Callable[[Mapping[str, np.ndarray]], bool]
    name: Callable[[Name], str]
    detector: bool = True
    rows: Callable[[int], Sequence[int]] = range
    prepare: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = lambda state: state


def _has(*names: str) -> Callable[[Mapping[str, np.ndarray]], bool]:
    return lambda state: set(names) <= state.keys()


_FORMATS = (
    _Format(
        "ssd.pytorch",
        _has("vgg.0.weight", "conf.0.weight"),
        _ssd_name(
            head=("conf.{}", "loc.{}"),
            l2_norm="L2Norm",
            extra=lambda block, i: f"extras.{2 * block + i}",
            layer="vgg.{}".format,
        ),
    ),
    _Format(
        "torchvision SSD",
        _has("backbone.scale_weight"),
        _ssd_name(
            head=("head.classification_head.module_list.{}", "head.regression_head.module_list.{}"),
            l2_norm="backbone.scale_",
            extra=lambda block, i: f"backbone.extra.{block + 1}.{2 * i}",
            layer=_torchvision_layer,
        ),
        rows=_coco_ids,
    ),
    _Format(
        "mmdetection SSD",
        _has("neck.l2_norm.weight"),
        _ssd_name(
            head=("bbox_head.cls_convs.{}.0", "bbox_head.reg_convs.{}.0"),
            l2_norm="neck.l2_norm",
            extra=lambda block, i: f"neck.extra_layers.{block}.{i}.conv",
            layer="backbone.features.{}".format,
        ),
        rows=_background_last,
    ),
    _Format(  # before 2.14
        "mmdetection SSD",
        _has("backbone.l2_norm.weight"),
        _ssd_name(
            head=_MMDETECTION_HEAD,
            l2_norm="backbone.l2_norm",
            extra=lambda block, i: f"backbone.extra.{2 * block + i}",
            layer="backbone.features.{}".format,
        ),
        rows=_background_last,
    ),
    _Format("mmdetection", _has("bbox_head.cls_convs.0.weight"), _plain_mmdetection_name),
    _Format(
        "mmdetection",
        lambda state: any(name.startswith(("backbone.", "bbox_head.")) for name in state),
        _mmdetection_name,
    ),
    _Format(
        "torchvision",
        _has("features.0.weight", "features.1.running_mean"),
        _vgg_name(_VGG_BN),
        detector=False,
        prepare=_absorb_biases,
    ),
    _Format("torchvision", _has("features.0.weight"), _vgg_name(_VGG), detector=False),
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
    """Returns whether an ImageNet classifier lacks this part."""
    return part in ("head", "conv4_3_l2", "fc6_norm", "fc7_norm") or part.startswith("extra")


def _layout(name: Name, found: np.ndarray, classes: tuple[int, Sequence[int]] | None) -> np.ndarray:
    """Converts a PyTorch array to the layout of our variable `name`."""
    outputs, rows = classes or (1, [0])  # without classes, the order stays
    if name[1] in ("fc6", "fc7") and found.shape[0] == 4096:
        found = _decimate(name, found)
    if name[1] == "head" and name[3].startswith("box_"):  # (x, y, w, h) for each anchor
        by_anchor = found.reshape(-1, 4, *found.shape[1:])
        found = by_anchor[:, _XYWH_TO_YXHW].reshape(found.shape)
    elif name[1] == "head" and len(found) % outputs == 0:
        by_anchor = found.reshape(-1, outputs, *found.shape[1:])
        found = by_anchor[:, rows].reshape(-1, *found.shape[1:])
    return found.transpose(2, 3, 1, 0) if found.ndim == 4 else found


def _decimate(name: Name, found: np.ndarray) -> np.ndarray:
    """Decimates fc6 or fc7 of ImageNet's VGG-16 to a convolution (Liu et al. 2016 §3.1).

    Takes every fourth unit, and every third row and column of fc6's 7×7 windows.
    """
    if name[-1] == "bias":
        return found[::4]
    if name[1] == "fc6":
        return found.reshape(4096, 512, 7, 7)[::4, :, ::3, ::3]
    return found[::4, ::4, None, None]
