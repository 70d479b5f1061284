"""Initialises a new run with the parameters of another where they fit (COCO → VOC)."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from flax import traverse_util

from scratchdet_jax.detector import Detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.models.parts import frozen_names, is_frozen
from scratchdet_jax.ops.anchors import anchors_per_cell
from scratchdet_jax.run.checkpoints import IMPORTED
from scratchdet_jax.run.open import load_detector, open_trained, split_run

# COCO's name → VOC's name; case, spaces, - and _ are ignored.
ALIASES = {
    "airplane": "aeroplane",
    "motorcycle": "motorbike",
    "couch": "sofa",
    "tv": "tvmonitor",
    "television": "tvmonitor",
}

Name = tuple[str, ...]


class Transfer(NamedTuple):
    """The result of a transfer.

    Attributes:
        variables: initial `params` and `batch_stats` of the new run, NumPy arrays.
        copied: (name, shape) of the arrays that were copied.
        remapped: (name, source shape, shape) of the class predictors, copied class by class.
        unmatched: (name, shape, reason) of the arrays that keep their initial values.
    """

    variables: dict[str, Any]
    copied: list[tuple[Name, tuple[int, ...]]]
    remapped: list[tuple[Name, tuple[int, ...], tuple[int, ...]]]
    unmatched: list[tuple[Name, tuple[int, ...], str]]


def map_classes(target: Sequence[str], source: Sequence[str]) -> tuple[int, ...]:
    """Returns the label in `source` (from 1) of each name in `target`, 0 where there is none.

    An identical name takes precedence over another spelling or an alias.
    """
    exact = {name: label for label, name in reversed(list(enumerate(source, 1)))}
    words = {_word(name): label for label, name in reversed(list(enumerate(source, 1)))}
    return tuple(exact.get(name, words.get(_word(name), 0)) for name in target)


def _word(name: str) -> str:
    plain = re.sub(r"[\s_-]+", "", name.lower())
    return ALIASES.get(plain, plain)


def transfer(
    initial: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    class_map: Sequence[int],
    source_classes: int,
    anchors: Sequence[int],
    source_anchors: Sequence[int],
) -> Transfer:
    """Copies into `initial` the arrays of `source` that match in name and shape.

    A head level matches if it has the same number of anchors per cell in both. The channels of its
    class predictors are ordered by anchor, then class. They are copied for the background and the
    mapped classes; other classes keep their initial values.

    Args:
        initial: `params` and `batch_stats` of the new model.
        source: `params` and `batch_stats` of the source.
        class_map: [C] label in the source of each new label 1…C, 0 where there is none.
        source_classes: number of classes of the source, without background.
        anchors: anchors per cell of each level of the new head.
        source_anchors: anchors per cell of each level of the source's head.
    """
    new = {k: np.asarray(v) for k, v in traverse_util.flatten_dict(dict(initial)).items()}
    old = {k: np.asarray(v) for k, v in traverse_util.flatten_dict(dict(source)).items()}
    result, copied, remapped, unmatched = dict(new), [], [], []
    identity = tuple(class_map) == tuple(range(1, source_classes + 1))
    for name, value in new.items():
        if name not in old:
            unmatched.append((name, value.shape, "not in the source"))
            continue
        found, level = old[name], _head_level(name)
        if level is not None and _at(anchors, level) != _at(source_anchors, level):
            reason = (
                f"{_at(anchors, level)} anchors per cell here, "
                f"{_at(source_anchors, level)} in the source"
            )
            unmatched.append((name, value.shape, reason))
        elif level is not None and name[3].startswith("class_") and not identity:
            moved = _remap(value, found, class_map, source_classes, anchors[level])
            if moved is None:
                unmatched.append((name, value.shape, _mismatch(found, class_map)))
            else:
                result[name] = moved
                remapped.append((name, found.shape, value.shape))
        elif found.shape != value.shape:
            unmatched.append((name, value.shape, f"{_shape(found.shape)} in the source"))
        else:
            result[name] = found.astype(value.dtype)
            copied.append((name, value.shape))
    nested = traverse_util.unflatten_dict(result)
    variables = {group: nested.get(group, {}) for group in initial}
    return Transfer(variables, copied, remapped, unmatched)


def _remap(
    value: np.ndarray,
    found: np.ndarray,
    class_map: Sequence[int],
    source_classes: int,
    anchors: int,
) -> np.ndarray | None:
    """Copies the channels of the mapped classes from `found` to `value`; None if none match."""
    if found.shape[:-1] != value.shape[:-1] or not any(class_map):
        return None
    split = value.reshape(*value.shape[:-1], anchors, len(class_map) + 1).copy()
    source = found.reshape(*found.shape[:-1], anchors, source_classes + 1)
    labels = np.concatenate([[0], np.asarray(class_map, int)])
    there = np.concatenate([[True], labels[1:] > 0])
    split[..., there] = source[..., labels[there]]
    return split.reshape(value.shape)


def _mismatch(found: np.ndarray, class_map: Sequence[int]) -> str:
    return f"{_shape(found.shape)} in the source" if any(class_map) else "no class in common"


def _head_level(name: Name) -> int | None:
    """Returns the index of a variable's head level ("params", "head", "level1", …), or None."""
    return int(name[2].removeprefix("level")) - 1 if name[1] == "head" else None


def _at(anchors: Sequence[int], level: int) -> int:
    return anchors[level] if level < len(anchors) else 0


def init_from_run(text: str, detector: Detector, variables: Any) -> dict[str, Any]:
    """Returns the initial variables for `config.init_from`; prints what was copied and what not.

    Args:
        text: WORKDIR[@STEP], or an exported file.
        detector: the new run's detector.
        variables: the new run's `params` and `batch_stats` before the transfer.

    Raises:
        UserError: there is no such run, checkpoint or file, or nothing in it matches.
    """
    path, checkpoint = split_run(text)
    try:
        run = open_trained(path, checkpoint)
    except UserError as error:
        raise UserError(f"config.init_from {text!r}: {error}") from None
    source, source_variables = load_detector(run)
    source_variables = _without_initial(path, source_variables)
    class_map = map_classes(detector.class_names, source.class_names)
    moved = transfer(
        variables,
        source_variables,
        class_map=class_map,
        source_classes=len(source.class_names),
        anchors=anchors_per_cell(detector.config.anchors.aspect_ratios),
        source_anchors=anchors_per_cell(source.config.anchors.aspect_ratios),
    )
    if not moved.copied and not moved.remapped:
        raise UserError(
            f"config.init_from {text!r}: no parameter of step {run.step} matches this model in "
            "name and shape; choose the same config.model, or leave init_from empty"
        )
    _require_frozen(detector.config, moved, class_map)
    print(f"parameters from {path} step {run.step}:")
    print(describe(moved, class_map, detector.class_names, source.class_names))
    return moved.variables


def _require_frozen(
    config: ml_collections.ConfigDict, moved: Transfer, class_map: Sequence[int]
) -> None:
    """Refuses to freeze arrays that would keep their random values."""
    frozen = frozen_names(config.freeze)
    random = [name for name, *_ in moved.unmatched]
    random += [name for name, *_ in moved.remapped if not all(class_map)]
    lost = [_name(name) for name in random if is_frozen(name[1:], frozen)]
    if lost:
        more = f" and {len(lost) - 1} more" if lost[1:] else ""
        raise UserError(
            f"config.freeze {config.freeze!r}: {lost[0]}{more} would keep random values, because "
            f"config.init_from {config.init_from!r} does not have all of them; freeze only parts "
            "that it has"
        )


def _without_initial(workdir: Path, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Removes the variables for which an imported checkpoint had no weights."""
    record = workdir / IMPORTED
    if not record.exists():
        return dict(variables)
    initial = set(json.loads(record.read_text(encoding="utf-8"))["initial"])
    flat = traverse_util.flatten_dict(dict(variables))
    return traverse_util.unflatten_dict(
        {name: value for name, value in flat.items() if _name(name) not in initial}
    )


def describe(
    moved: Transfer, class_map: Sequence[int], target: Sequence[str], source: Sequence[str]
) -> str:
    """Lists the classes found and missing, and the arrays copied, remapped and unmatched."""
    pairs = [
        name if source[label - 1] == name else f"{name} from {source[label - 1]}"
        for name, label in zip(target, class_map, strict=True)
        if label
    ]
    missing = [name for name, label in zip(target, class_map, strict=True) if not label]
    lines = [f"  classes found ({len(pairs)} of {len(target)}): {', '.join(pairs) or 'none'}"]
    if missing:
        lines.append(f"  classes not in the source: {', '.join(missing)}")
    lines += [f"  copied    {_name(name)} {_shape(shape)}" for name, shape in moved.copied]
    lines += [
        f"  remapped  {_name(name)} {_shape(before)} to {_shape(shape)}"
        for name, before, shape in moved.remapped
    ]
    lines += [
        f"  unmatched {_name(name)} {_shape(shape)}: {reason}"
        for name, shape, reason in moved.unmatched
    ]
    lines.append(
        f"  {len(moved.copied)} copied, {len(moved.remapped)} remapped, "
        f"{len(moved.unmatched)} unmatched"
    )
    return "\n".join(lines)


def _name(name: Name) -> str:
    return "/".join(name[1:])


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
