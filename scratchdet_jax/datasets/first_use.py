"""Data sets at first use: what the core asks for when one is missing (data/first_use.py)."""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import ml_collections

from scratchdet_jax.data.records import parse_spec
from scratchdet_jax.data.tfds_dataset import FOR_TFDS, inventory, is_prepared, tfds_build
from scratchdet_jax.datasets.folders import VocFolder, prepare_voc_folder, stored_choices
from scratchdet_jax.datasets.shapes import prepare_shapes
from scratchdet_jax.errors import UserError
from scratchdet_jax.paths import user_path

_SPLIT_NAME = r"(?<![\w\[:%])[a-zA-Z]\w*"  # not the unit in [:50%]
_ARGUMENTS = {
    "voc_folder": "voc --folder=FOLDER",
    "coco_folder": "coco --split=SPLIT:ANNOTATIONS.json:IMAGE_FOLDER",
    "yolo_folder": "yolo --data=data.yaml",
}


class Official(NamedTuple):
    """A data set of TFDS that `prepare` makes of its published files.

    Attributes:
        name: TFDS's name, such as voc/2007.
        own: the data set that `prepare` makes, such as voc_folder/voc2007.
        download: the files to download, where from, and where to unpack them.
        arguments: of `prepare`, without --name and --data_dir.
        splits: the splits with published boxes: TFDS's names, and those in the own set.
    """

    name: str
    own: str
    download: str
    arguments: str
    splits: Mapping[str, str]

    def command(self, data_dir: str) -> str:
        """Returns the command that prepares it, which does nothing if it is prepared."""
        target = f"--name={self.own.partition('/')[2]} --data_dir={shlex.quote(data_dir)}"
        return f"scratchdet prepare {self.arguments} {target}"

    def translated(self, split: str) -> str | None:
        """Returns a split in TFDS's names, such as train+validation[:9], as one of the own set.

        None if the boxes of one of its splits are not published.
        """
        names = re.findall(_SPLIT_NAME, split)
        if not self.splits.keys() >= set(names):
            return None
        return re.sub(_SPLIT_NAME, lambda match: self.splits[match[0]], split)


def _voc(year: str, files: str, splits: dict[str, str]) -> Official:
    folder = f"VOCdevkit/VOC{year}"
    return Official(
        f"voc/{year}",
        f"voc_folder/voc{year}",
        f"{files} from http://host.robots.ox.ac.uk/pascal/VOC/voc{year}/ into this folder and "
        f"unpack {'them' if ' and ' in files else 'it'}, which makes {folder}",
        f"voc --folder={folder} --splits={','.join(splits.values())}",
        splits,
    )


def _coco(year: str) -> Official:
    splits = " ".join(
        f"--split={split}:coco/annotations/instances_{part}{year}.json:coco/{part}{year}"
        for split, part in (("train", "train"), ("validation", "val"))
    )
    return Official(
        f"coco/{year}",
        f"coco_folder/coco{year}",
        f"train{year}.zip, val{year}.zip and annotations_trainval{year}.zip from "
        f"https://cocodataset.org/#download into a folder coco and unpack them there, which makes "
        f"coco/train{year}, coco/val{year} and coco/annotations",
        f"coco {splits}",
        {"train": "train", "validation": "validation"},
    )


_ALL = (
    _voc(
        "2007",
        "VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar",
        {"train": "train", "validation": "val", "test": "test"},
    ),
    _voc("2012", "VOCtrainval_11-May-2012.tar", {"train": "train", "validation": "val"}),
    _coco("2017"),
    _coco("2014"),
)


def official(name: str) -> Official | None:
    """Returns the published data set that TFDS calls `name`; its usual year if `name` has none."""
    return next((o for o in _ALL if name in (o.name, o.name.partition("/")[0])), None)


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
    prepare_voc_folder(settings.folder, settings.dir, name, choices=choices)


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

    `fields` are the fields of `config.data` that the program will open: "train", "eval".

    Returns:
        None if `dataset` is neither VOC nor COCO, or the boxes of a split are not published.
    """
    missing: dict[tuple[str, str], Official] = {}
    new = {}
    for field in fields:
        specs = []
        for part in parse_spec(settings[field]) if ":" in settings[field] else []:
            folder = str(user_path(part.directory or settings.dir))
            name, split, published = part.name, part.split, official(part.name)
            if published and not is_prepared(name, folder):
                missing[name, folder] = published
                translated = published.translated(split)
                if translated is None:
                    return None
                name, split = published.own, translated
            specs.append(f"{name}:{split}" + f"@{part.directory}" * bool(part.directory))
        if missing and specs and ",".join(specs) != settings[field]:
            new[f"data.{field}"] = ",".join(specs)
    if dataset not in {name for name, _ in missing}:
        return None
    return _error(missing, new)


def _error(missing: dict[tuple[str, str], Official], fields: dict[str, str]) -> UserError:
    names = " or ".join(dict.fromkeys(name for name, _ in missing))
    folders = dict.fromkeys(folder for _, folder in missing)
    found = "; ".join(map(inventory, folders))
    downloads = "; ".join(f"download {o.download}" for o in missing.values())
    commands = [o.command(folder) for (_, folder), o in missing.items()]
    overrides = [shlex.quote(f"--config.{name}={value}") for name, value in fields.items()]
    commands.append(f"the same command with {' '.join(overrides)}")
    builds = " and ".join(f"`{tfds_build(o.name, folder)}`" for (_, folder), o in missing.items())
    return UserError(
        f"there is no data set {names} in {' or '.join(folders)} (it has {found}): {downloads}; "
        "then run, in this order\n  "
        + "\n  ".join(commands)
        + f"\nor run {builds}, in a separate environment {FOR_TFDS}, and then the command as it was"
    )
