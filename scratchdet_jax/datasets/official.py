"""VOC and COCO as published: where the files are, how to prepare them, and what they replace."""

import re
import shlex
from collections.abc import Collection, Mapping
from typing import NamedTuple

from scratchdet_jax.data.coco_classes import NAMES

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
# Splits of TFDS's sets, and what they are called in sets that were prepared from folders.
_OWN_NAMES = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}


class Official(NamedTuple):
    """A data set of TFDS that `prepare` makes of its published files.

    Attributes:
        name: TFDS's name, such as voc/2007.
        kind: voc_folder or coco_folder.
        own_name: `kind`/`own_name` is the set that `prepare` makes.
        download: the files to download, where from, and where to unpack them.
        arguments: of `prepare`, without --data_dir.
        splits: the splits with published boxes: TFDS's names, and those in the own set.
        class_names: in the order of the labels.
    """

    name: str
    kind: str
    own_name: str
    download: str
    arguments: str
    splits: Mapping[str, str]
    class_names: tuple[str, ...]

    def command(self, data_dir: str, again: bool = False) -> str:
        """Returns the command that prepares it, or prepares it `again`."""
        where = f"--data_dir={shlex.quote(data_dir)}{' --force' if again else ''}"
        return f"scratchdet prepare {self.arguments} --name={self.own_name} {where}"

    def is_called(self, own_name: str) -> bool:
        """Returns whether an own set has the name of this one: voc2007, my_voc07; or just coco."""
        if self.kind == "coco_folder" and not re.search(r"\d", own_name):
            return True
        return bool(re.search(rf"(?<!\d)(20)?{self.name[-2:]}(?!\d)", own_name))


def _voc(year: str, files: str, splits: dict[str, str]) -> Official:
    folder = f"VOCdevkit/VOC{year}"
    return Official(
        f"voc/{year}",
        "voc_folder",
        f"voc{year}",
        f"{files} from http://host.robots.ox.ac.uk/pascal/VOC/voc{year}/ into this folder and "
        f"unpack {'them' if ' and ' in files else 'it'}, which makes {folder}",
        f"voc --folder={folder} --splits={','.join(splits.values())}",
        splits,
        VOC_CLASSES,
    )


def _coco(year: str) -> Official:
    splits = " ".join(
        f"--split={split}:coco/annotations/instances_{part}{year}.json:coco/{part}{year}"
        for split, part in (("train", "train"), ("validation", "val"))
    )
    return Official(
        f"coco/{year}",
        "coco_folder",
        f"coco{year}",
        f"train{year}.zip, val{year}.zip and annotations_trainval{year}.zip from "
        f"https://cocodataset.org/#download into a folder coco and unpack them there, which makes "
        f"coco/train{year}, coco/val{year} and coco/annotations",
        f"coco {splits}",
        {"train": "train", "validation": "validation"},
        NAMES,
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


def translated(split: str, known: Collection[str]) -> str | None:
    """Returns a split in TFDS's names, in terms of the splits `known` of an own set.

    None if one is missing. Sets with the split trainval may lack train and val.
    """
    if "trainval" in known and not {"train", "val"} <= set(known):
        split = re.sub(r"\btrain\+validation\b(?!\[)", "trainval", split)
    missing = []

    def rename(match: re.Match[str]) -> str:
        names = _OWN_NAMES.get(match[0], (match[0],))
        found = next((name for name in names if name in known), None)
        missing.extend([] if found else [match[0]])
        return found or ""

    renamed = re.sub(r"(?<![\w\[:%])[a-zA-Z]\w*", rename, split)
    return None if missing else renamed
