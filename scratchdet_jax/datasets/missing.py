"""VOC or COCO is missing: the commands that prepare it, and the fields that then fit."""

import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import ml_collections

from scratchdet_jax.data.records import SpecPart, parse_spec
from scratchdet_jax.data.tfds_dataset import (
    FOR_TFDS,
    classes_and_splits,
    configs,
    inventory,
    is_prepared,
    tfds_build,
)
from scratchdet_jax.datasets.official import Official, official, translated
from scratchdet_jax.errors import UserError


class _Substitute(NamedTuple):
    """The own set that stands in for a missing published one.

    Attributes:
        published: the missing set.
        data_dir: the folder that lacks it, which also holds the own set.
        name: KIND/NAME of the own set.
        splits: its splits.
        command: prepares it; "" if it exists.
    """

    published: Official
    data_dir: str
    name: str
    splits: Collection[str]
    command: str


def missing_error(
    settings: ml_collections.ConfigDict, fields: Sequence[str], dataset: str
) -> UserError | None:
    """Words the error: what to download, and the commands and fields to train on it.

    Args:
        settings: `config.data`.
        fields: the fields of `settings` that the program will open: "train", "eval".
        dataset: the set that is missing.

    Returns:
        None if `dataset` is neither VOC nor COCO, or the boxes of a split are not published.
    """
    parts = {field: parse_spec(settings[field]) for field in fields if ":" in settings[field]}
    wanted: dict[tuple[str, str], list[str]] = {}
    for part in (part for members in parts.values() for part in members):
        wanted.setdefault((part.name, _directory(part, settings)), []).append(part.split)
    substitutes: dict[tuple[str, str], _Substitute] = {}
    for (name, data_dir), splits in wanted.items():
        published = official(name)
        if published is None or is_prepared(name, data_dir):
            continue
        if not _has_all(splits, published.splits.values()):
            return None
        substitutes[name, data_dir] = _substitute(published, data_dir, splits)
    if dataset not in {name for name, _ in substitutes}:
        return None

    def translate(part: SpecPart) -> str:
        place = f"@{part.directory}" if part.directory else ""
        substitute = substitutes.get((part.name, _directory(part, settings)))
        if substitute is None:
            return f"{part.name}:{part.split}{place}"
        return f"{substitute.name}:{translated(part.split, substitute.splits)}{place}"

    specs = {field: ",".join(map(translate, members)) for field, members in parts.items()}
    new = {f"data.{field}": spec for field, spec in specs.items() if spec != settings[field]}
    return _error(list(substitutes.values()), new)


def _directory(part: SpecPart, settings: ml_collections.ConfigDict) -> str:
    return os.path.expanduser(part.directory) or str(settings.dir)


def _has_all(splits: Sequence[str], known: Collection[str]) -> bool:
    return all(translated(split, known) is not None for split in splits)


def _substitute(published: Official, data_dir: str, splits: Sequence[str]) -> _Substitute:
    """Finds a prepared own set that has all of `splits`; else the one that a command prepares."""
    usual = published.own_name
    names = configs(published.kind, data_dir)
    candidates = [name for name in names if published.is_called(name)]
    for name in sorted(candidates, key=lambda name: name != usual):
        own = f"{published.kind}/{name}"
        try:
            classes, found = classes_and_splits(own, data_dir)
        except UserError:  # it cannot be used
            continue
        if _has_all(splits, found) and classes == published.class_names:
            return _Substitute(published, data_dir, own, found, "")
    command = published.command(data_dir, again=usual in names)
    own = f"{published.kind}/{usual}"
    return _Substitute(published, data_dir, own, published.splits.values(), command)


def _error(substitutes: Sequence[_Substitute], fields: Mapping[str, str]) -> UserError:
    names = " or ".join(dict.fromkeys(s.published.name for s in substitutes))
    folders = " or ".join(dict.fromkeys(s.data_dir for s in substitutes))
    found = "; ".join(dict.fromkeys(inventory(s.data_dir) for s in substitutes))
    problem = f"there is no data set {names} in {folders} (it has {found})"
    if ready := " and ".join(s.name for s in substitutes if not s.command):
        problem += f", but {ready}, prepared from a folder, can be used instead"
    rest = [s for s in substitutes if s.command]
    overrides = [shlex.quote(f"--config.{name}={value}") for name, value in fields.items()]
    again = f"  the same command with {' '.join(overrides)}"
    if not rest:
        return UserError(f"{problem}:\n{again}")
    downloads = "; ".join(f"download {s.published.download}" for s in rest)
    commands = "".join(f"\n  {s.command}" for s in rest)
    builds = " and ".join(f"`{tfds_build(s.published.name, s.data_dir)}`" for s in rest)
    return UserError(
        f"{problem}: {downloads}; then run, in this order{commands}\n{again}\n"
        f"or run {builds}, in a separate environment {FOR_TFDS}, and then the command as it was"
    )
