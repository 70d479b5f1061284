"""Data sets at first use: what the core asks for when one is missing (data/first_use.py)."""

import shlex
from pathlib import Path

import ml_collections

from scratchdet_jax.data.tfds_dataset import FOR_TFDS, tfds_build
from scratchdet_jax.datasets.folder_builder import stored_choices
from scratchdet_jax.datasets.missing import missing_error
from scratchdet_jax.datasets.official import official
from scratchdet_jax.datasets.shapes import prepare_shapes
from scratchdet_jax.datasets.voc_folder import VocFolder, prepare_voc_folder

MAKERS = {"shapes": prepare_shapes}
"""Data sets that make themselves, by name; each takes the folder of the prepared data sets."""

_ARGUMENTS = {
    "voc_folder": "voc --folder=FOLDER",
    "coco_folder": "coco --split=SPLIT:ANNOTATIONS.json:IMAGE_FOLDER",
    "yolo_folder": "yolo --data=data.yaml",
}

substitute_error = missing_error


def provide(name: str, data_dir: str) -> bool:
    """Makes the data set NAME[/CONFIG] in `data_dir`; returns whether it could."""
    if name not in MAKERS:
        return False
    MAKERS[name](data_dir)
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
