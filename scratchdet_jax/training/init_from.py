"""Begins a new run with the parameters of another, as far as they fit (COCO → VOC)."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from scratchdet_jax.detector import Detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.ops.anchors import anchors_per_cell
from scratchdet_jax.run.checkpoints import IMPORTED
from scratchdet_jax.run.open import load_detector, open_run, split_run

# VOC's and COCO's words for the same thing; case, spaces, - and _ never matter.
ALIASES = {
    "airplane": "aeroplane",
    "motorcycle": "motorbike",
    "couch": "sofa",
    "tv": "tvmonitor",
    "television": "tvmonitor",
}

Name = tuple[str, ...]


class Transfer(NamedTuple):
    """The outcome.

    Attributes:
        variables: `params` and `batch_stats` to begin with, NumPy arrays.
        taken: (name, shape) of what was copied.
        remapped: (name, source shape, shape) of class predictors, copied class by class.
        left: (name, shape, reason) of what keeps its initial value.
    """

    variables: dict[str, Any]
    taken: list[tuple[Name, tuple[int, ...]]]
    remapped: list[tuple[Name, tuple[int, ...], tuple[int, ...]]]
    left: list[tuple[Name, tuple[int, ...], str]]


def map_classes(target: Sequence[str], source: Sequence[str]) -> tuple[int, ...]:
    """The label in `source` of each name in `target` (1…), 0 where there is none.

    The same name comes first, then the same word under another spelling or alias.
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
    """Puts into `initial` what of `source` fits by name and shape.

    A head level fits if it has the same number of anchors in a cell in both. Its class predictors'
    channels run over anchor, then class: they are copied for the background and every mapped
    class; other classes keep their initial values.

    Args:
        initial: `params` and `batch_stats` of the new model.
        source: likewise, of the other.
        class_map: [C] label in the source of each of the new labels 1…C, 0 where there is none.
        source_classes: number of classes of the source, without background.
        anchors: anchors in a cell of each level of the new head.
        source_anchors: likewise, of the source.
    """
    new = {k: np.asarray(v) for k, v in traverse_util.flatten_dict(dict(initial)).items()}
    old = {k: np.asarray(v) for k, v in traverse_util.flatten_dict(dict(source)).items()}
    result, taken, remapped, left = dict(new), [], [], []
    identity = tuple(class_map) == tuple(range(1, source_classes + 1))
    for name, value in new.items():
        if name not in old:
            left.append((name, value.shape, "the source has none"))
            continue
        found, level = old[name], _head_level(name)
        if level is not None and _at(anchors, level) != _at(source_anchors, level):
            reason = (
                f"{_at(anchors, level)} anchors in a cell here, "
                f"{_at(source_anchors, level)} in the source"
            )
            left.append((name, value.shape, reason))
        elif level is not None and name[3].startswith("class_") and not identity:
            moved = _remap(value, found, class_map, source_classes, anchors[level])
            if moved is None:
                left.append((name, value.shape, _other(found, class_map)))
            else:
                result[name] = moved
                remapped.append((name, found.shape, value.shape))
        elif found.shape != value.shape:
            left.append((name, value.shape, f"{_shape(found.shape)} in the source"))
        else:
            result[name] = found.astype(value.dtype)
            taken.append((name, value.shape))
    nested = traverse_util.unflatten_dict(result)
    variables = {group: nested.get(group, {}) for group in initial}
    return Transfer(variables, taken, remapped, left)


def _remap(
    value: np.ndarray,
    found: np.ndarray,
    class_map: Sequence[int],
    source_classes: int,
    anchors: int,
) -> np.ndarray | None:
    """`value` with the channels of the mapped classes from `found`; None if nothing fits."""
    if found.shape[:-1] != value.shape[:-1] or not any(class_map):
        return None
    split = value.reshape(*value.shape[:-1], anchors, len(class_map) + 1).copy()
    source = found.reshape(*found.shape[:-1], anchors, source_classes + 1)
    labels = np.concatenate([[0], np.asarray(class_map, int)])
    there = np.concatenate([[True], labels[1:] > 0])
    split[..., there] = source[..., labels[there]]
    return split.reshape(value.shape)


def _other(found: np.ndarray, class_map: Sequence[int]) -> str:
    return f"{_shape(found.shape)} in the source" if any(class_map) else "no class in common"


def _head_level(name: Name) -> int | None:
    """Index of the head level that a variable ("params", "head", "level1", …) belongs to."""
    return int(name[2].removeprefix("level")) - 1 if name[1] == "head" else None


def _at(anchors: Sequence[int], level: int) -> int:
    return anchors[level] if level < len(anchors) else 0


def init_from_run(text: str, detector: Detector, variables: Any) -> dict[str, Any]:
    """The variables to begin with, by `config.init_from`; prints what was taken and left.

    Args:
        text: WORKDIR[@STEP].
        detector: the new run's detector.
        variables: its initial `params` and `batch_stats`.

    Raises:
        UserError: there is no such run or checkpoint, or nothing of it fits.
    """
    workdir, checkpoint = split_run(text)
    try:
        run = open_run(workdir, checkpoint)
    except UserError as error:
        raise UserError(f"config.init_from {text!r}: {error}") from None
    source, source_variables = load_detector(run)
    source_variables = _without_initial(workdir, source_variables)
    class_map = map_classes(detector.class_names, source.class_names)
    moved = transfer(
        variables,
        source_variables,
        class_map=class_map,
        source_classes=len(source.class_names),
        anchors=anchors_per_cell(detector.config.anchors.aspect_ratios),
        source_anchors=anchors_per_cell(source.config.anchors.aspect_ratios),
    )
    if not moved.taken and not moved.remapped:
        raise UserError(
            f"config.init_from {text!r}: nothing of step {run.step} fits this model by name and "
            "shape; choose the same config.model, or leave init_from empty"
        )
    print(f"parameters from {workdir} step {run.step}:")
    print(describe(moved, class_map, detector.class_names, source.class_names))
    return moved.variables


def _without_initial(workdir: Path, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of a run less those that an import had no weights for."""
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
    """The list of classes, and of arrays taken, remapped and left, with shapes; many lines."""
    pairs = [
        name if source[label - 1] == name else f"{name} from {source[label - 1]}"
        for name, label in zip(target, class_map, strict=True)
        if label
    ]
    missing = [name for name, label in zip(target, class_map, strict=True) if not label]
    lines = [f"  classes found ({len(pairs)} of {len(target)}): {', '.join(pairs) or 'none'}"]
    if missing:
        lines.append(f"  classes not in the source: {', '.join(missing)}")
    lines += [f"  taken     {_name(name)} {_shape(shape)}" for name, shape in moved.taken]
    lines += [
        f"  remapped  {_name(name)} {_shape(before)} to {_shape(shape)}"
        for name, before, shape in moved.remapped
    ]
    lines += [f"  left      {_name(n)} {_shape(shape)}: {why}" for n, shape, why in moved.left]
    counts = f"{len(moved.taken)} taken, {len(moved.remapped)} remapped, {len(moved.left)} left"
    return "\n".join([*lines, f"  {counts}"])


def _name(name: Name) -> str:
    return "/".join(name[1:])


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
