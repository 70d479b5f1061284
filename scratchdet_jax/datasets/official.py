"""VOC and COCO as published: where the files are, how to prepare them, and what they replace."""

import re
import shlex
from collections.abc import Mapping
from typing import NamedTuple

_SPLIT_NAME = r"(?<![\w\[:%])[a-zA-Z]\w*"  # not the unit in [:50%]
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

    def command(self, data_dir: str, again: bool = False) -> str:
        """Returns the command that prepares it, or prepares it `again`."""
        name = self.own.partition("/")[2]
        where = f"--data_dir={shlex.quote(data_dir)}{' --force' if again else ''}"
        return f"scratchdet prepare {self.arguments} --name={name} {where}"

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
