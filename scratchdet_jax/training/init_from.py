"""Initialises a new run with the parameters of another where they fit (COCO → VOC)."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from scratchdet_jax.detector import Detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.models.parts import is_frozen, split_names
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

Arrays = dict[tuple[str, ...], np.ndarray]  # by name, such as ("params", "head", "level1", …)


def init_from_run(text: str, detector: Detector, variables: Any) -> dict[str, Any]:
    """Returns the initial variables for `config.init_from`; prints what was copied and what not.

    An array is copied if name and shape match, and in the head the number of anchors per cell.
    Class predictors are copied class by class, by name; other classes keep their initial values.

    `text` is WORKDIR[@STEP] or an exported file; `variables` are the new run's before the transfer.

    Raises:
        UserError: there is no such run, checkpoint or file, nothing in it matches, or
            `config.freeze` names what it does not have.
    """
    path, checkpoint = split_run(text)
    try:
        run = open_trained(path, checkpoint)
    except UserError as error:
        raise UserError(f"config.init_from {text!r}: {error}") from None
    source, source_variables = load_detector(run)
    arrays = _trained_arrays(path, source_variables)
    classes = map_classes(detector.class_names, source.class_names)
    matched, lines, random = 0, [], []
    result = {}
    for name, value in _flat(variables).items():
        moved, kind, detail = _moved(name, value, arrays.get(name), (detector, source), classes)
        short = "/".join(name[1:])
        lines.append(f"  {kind:<9} {short} {detail}")
        result[name] = value if moved is None else moved
        matched += moved is not None
        if kind == "unmatched" or (kind == "remapped" and not all(classes)):
            random.append(short)
    if not matched:
        raise UserError(
            f"config.init_from {text!r}: no parameter of step {run.step} matches this model in "
            "name and shape; choose the same config.model, or leave init_from empty"
        )
    _require_frozen(detector, random)
    print(f"parameters from {path} step {run.step}:")
    print("\n".join([*_class_lines(detector, source, classes), *lines]))
    print(f"  {matched} copied or remapped, {len(lines) - matched} unmatched")
    nested = traverse_util.unflatten_dict(result)
    return {group: nested.get(group, {}) for group in variables}


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


def _flat(variables: Any) -> Arrays:
    return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(dict(variables)).items()}


def _trained_arrays(workdir: Path, variables: Any) -> Arrays:
    """Returns the arrays of the source without those for which an import had no weights."""
    record = workdir / IMPORTED
    initial = json.loads(record.read_text(encoding="utf-8"))["initial"] if record.exists() else ()
    return {k: v for k, v in _flat(variables).items() if "/".join(k[1:]) not in initial}


def _moved(
    name: tuple[str, ...],
    value: np.ndarray,
    found: np.ndarray | None,
    detectors: tuple[Detector, Detector],
    classes: tuple[int, ...],
) -> tuple[np.ndarray | None, str, str]:
    """Moves one array from the source to the new run.

    `name` is such as ("params", "head", "level1", "class_conv", "kernel"), `value` the initial one
    and `found` that in the source, or None; `detectors` are the new run's and the source's.

    Returns:
        The array, or None if it keeps its initial value; "copied", "remapped" or "unmatched"; and
        the shapes and the reason, for the user.
    """

    def unmatched(reason: str) -> tuple[None, str, str]:
        return None, "unmatched", f"{_shape(value)}: {reason}"

    if found is None:
        return unmatched("not in the source")
    if name[1] == "head":
        level = int(name[2].removeprefix("level")) - 1
        cells = [anchors_per_cell(d.config.anchors.aspect_ratios) for d in detectors]
        here, there = (dict(enumerate(cell)).get(level, 0) for cell in cells)
        if here != there:
            return unmatched(f"{here} anchors per cell here, {there} in the source")
        identical = classes == tuple(range(1, len(detectors[1].class_names) + 1))
        if name[3].startswith("class_") and not identical:
            if not any(classes):
                return unmatched("no class in common")
            if found.shape[:-1] == value.shape[:-1]:
                moved = _remapped(value, found, classes, here)
                return moved, "remapped", f"{_shape(found)} to {_shape(value)}"
    if found.shape != value.shape:
        return unmatched(f"{_shape(found)} in the source")
    return found.astype(value.dtype), "copied", _shape(value)


def _remapped(
    value: np.ndarray, found: np.ndarray, classes: Sequence[int], anchors: int
) -> np.ndarray:
    """Copies the background and the mapped classes from `found` [..., anchors · labels]."""
    split = value.reshape(*value.shape[:-1], anchors, len(classes) + 1).copy()
    source = found.reshape(*found.shape[:-1], anchors, -1)
    labels = np.array([0, *classes])
    there = np.array([True, *(label > 0 for label in classes)])
    split[..., there] = source[..., labels[there]]
    return split.reshape(value.shape)


def _require_frozen(detector: Detector, random: Sequence[str]) -> None:
    """Refuses to freeze arrays that keep random values."""
    config = detector.config
    frozen = split_names(config.freeze)
    lost = [name for name in random if is_frozen(name.split("/"), frozen)]
    if lost:
        more = f" and {len(lost) - 1} more" if lost[1:] else ""
        raise UserError(
            f"config.freeze {config.freeze!r}: {lost[0]}{more} would keep random values, because "
            f"config.init_from {config.init_from!r} does not have all of them; freeze only parts "
            "that it has"
        )


def _class_lines(detector: Detector, source: Detector, classes: Sequence[int]) -> list[str]:
    """Lists the classes that were found, with other names in the source, and the others."""
    found, missing = [], []
    for name, label in zip(detector.class_names, classes, strict=True):
        other = source.class_names[label - 1]
        if label:
            found.append(name if name == other else f"{name} from {other}")
        else:
            missing.append(name)
    count = f"{len(found)} of {len(classes)}"
    lines = [f"  classes found ({count}): {', '.join(found) or 'none'}"]
    return lines + ([f"  classes not in the source: {', '.join(missing)}"] if missing else [])


def _shape(array: np.ndarray) -> str:
    return "x".join(map(str, array.shape)) or "scalar"
