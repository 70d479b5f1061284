"""Data sets at first use: what the core asks for when one is missing (data/first_use.py)."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import ml_collections

from scratchdet_jax.data.records import SpecPart, parse_spec
from scratchdet_jax.data.tfds_dataset import (
    FOR_TFDS,
    classes_and_splits,
    inventory,
    is_prepared,
    tfds_build,
)
from scratchdet_jax.datasets.folder_builder import stored_choices
from scratchdet_jax.datasets.official import Official, official
from scratchdet_jax.datasets.shapes import prepare_shapes
from scratchdet_jax.datasets.voc_folder import VocFolder, prepare_voc_folder
from scratchdet_jax.errors import UserError

_ARGUMENTS = {
    "voc_folder": "voc --folder=FOLDER",
    "coco_folder": "coco --split=SPLIT:ANNOTATIONS.json:IMAGE_FOLDER",
    "yolo_folder": "yolo --data=data.yaml",
}


def provide(name: str, data_dir: str) -> bool:
    """Makes the data set NAME[/CONFIG] in `data_dir`; returns whether it could."""
    if name != "shapes":
        return False
    prepare_shapes(data_dir)
    return True


def prepare_folder(settings: ml_collections.ConfigDict, name: str) -> None:
    """Prepares `settings.folder` as voc_folder/NAME in `settings.dir`, unless it exists.

    The choices of an earlier preparation are kept.
    """
    choices = stored_choices(settings.dir, VocFolder, name)
    prepare_voc_folder(Path(settings.folder), Path(settings.dir), name, choices=choices)


def how_to_provide(name: str, data_dir: str) -> str:
    """Returns the commands that create a missing data set, as the end of a sentence."""
    head, _, config = name.partition("/")
    where = f"--data_dir={shlex.quote(data_dir)}"
    if head in _ARGUMENTS:
        return f"run `scratchdet prepare {_ARGUMENTS[head]} --name={config or 'NAME'} {where}`"
    build = f"run `{tfds_build(name, data_dir)}`, in a separate environment {FOR_TFDS}"
    if published := official(name):
        return (
            f"{build}; or download {published.download}, run `{published.command(data_dir)}` and "
            f"use {published.own}"
        )
    return build


def substitute_error(
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
    missing: dict[tuple[str, str], Official] = {}

    def directory(part: SpecPart) -> str:
        return os.path.expanduser(part.directory) or str(settings.dir)

    def own(part: SpecPart) -> str | None:
        """Returns the part in terms of the set that `prepare` makes; as it is if it exists."""
        place = f"@{part.directory}" if part.directory else ""
        published = official(part.name)
        if published is None or is_prepared(part.name, directory(part)):
            return f"{part.name}:{part.split}{place}"
        missing[part.name, directory(part)] = published
        split = published.translated(part.split)
        return split and f"{published.own}:{split}{place}"

    new = {}
    for field in fields:
        parts = parse_spec(settings[field]) if ":" in settings[field] else []
        specs = [own(part) for part in parts]
        if None in specs:
            return None
        if missing and specs and ",".join(filter(None, specs)) != settings[field]:
            new[f"data.{field}"] = ",".join(filter(None, specs))
    if dataset not in {name for name, _ in missing}:
        return None
    return _error(missing, new)


def _error(missing: dict[tuple[str, str], Official], fields: dict[str, str]) -> UserError:
    names = " or ".join(dict.fromkeys(name for name, _ in missing))
    folders = dict.fromkeys(folder for _, folder in missing)
    found = "; ".join(map(inventory, folders))
    problem = f"there is no data set {names} in {' or '.join(folders)} (it has {found})"
    rest = {key: o for key, o in missing.items() if not _is_ready(o, key[1])}
    ready = [o.own for key, o in missing.items() if key not in rest]
    if ready:
        problem += f", but {' and '.join(ready)}, prepared from a folder, can be used instead"
    overrides = [shlex.quote(f"--config.{name}={value}") for name, value in fields.items()]
    again = f"  the same command with {' '.join(overrides)}"
    if not rest:
        return UserError(f"{problem}:\n{again}")
    downloads = "; ".join(f"download {o.download}" for o in rest.values())
    commands = [o.command(folder, is_prepared(o.own, folder)) for (_, folder), o in rest.items()]
    builds = " and ".join(f"`{tfds_build(o.name, folder)}`" for (_, folder), o in rest.items())
    return UserError(
        "\n  ".join([f"{problem}: {downloads}; then run, in this order", *commands])
        + f"\n{again}\nor run {builds}, in a separate environment {FOR_TFDS}, and then the command "
        "as it was"
    )


def _is_ready(published: Official, data_dir: str) -> bool:
    """Returns whether `prepare` has made the set, with all of its splits."""
    if not is_prepared(published.own, data_dir):
        return False
    return {*published.splits.values()} <= {*classes_and_splits(published.own, data_dir)[1]}
