"""Reads the lists of ids in ImageSets/Main, and decides which image is in which split."""

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from scratchdet_jax.datasets.untrusted import IMAGE_SUFFIXES, as_key, as_text, printable, read_list
from scratchdet_jax.datasets.voc_layout import (
    IMAGE_FOLDERS,
    Files,
    Layout,
    is_hidden,
    split_folders,
    subfolder_of_any_case,
)
from scratchdet_jax.errors import UserError, plural

_LABELLED_LINE = re.compile(r"(.*\S)\s+(-1|0|1)")  # in per-class lists such as car_train.txt


class SplitList(NamedTuple):
    """The ids of a split, in order, repeated ones included.

    Attributes:
        split: its name in the data set.
        source: the list or folder that it comes from, for messages; "" if it is all images.
        ids: some may have no image.
        is_list: whether the source is a list.
    """

    split: str
    source: str
    ids: list[str]
    is_list: bool


def read_splits(
    folder: Path, layout: Layout, files: Files, wanted: Sequence[str] | None
) -> tuple[list[SplitList], dict[str, list[str]], list[str]]:
    """Finds the splits: the plain lists, else folders that are called like splits, else `train`.

    `wanted`: the splits to use; None: all.

    Returns:
        The splits, in the order of the lists' names; the lines of the lists by file name; and
        notes on decisions made for the user.

    Raises:
        UserError: a list cannot be read, a wanted split is missing, or two lists have one name.
    """
    notes: list[str] = []
    place, lists = _read_lists(folder, layout.folder)
    per_class = [name for name, lines in lists.items() if _labelled(lines, files)]
    if per_class:
        notes.append(
            "per-class lists, which have a flag on each line, are passed over: "
            f"{len(per_class)}, such as {place}/{printable(per_class[0])}"
        )
    plain = {name: lines for name, lines in lists.items() if name not in per_class}
    split_of = {name: os.path.splitext(name)[0] for name in plain}
    if [*split_of.values()] == ["default"] and (wanted is None or "train" in wanted):
        (name,) = plain
        split_of[name] = "train"
        notes.append(f"{place}/{name} is the only list, so its images form the split train")
    found = []
    for name, lines in plain.items():
        ids = _read_as_ids(lines, files, layout)
        changed = [pair for pair in zip(lines, ids, strict=True) if pair[0] != pair[1]]
        if changed:
            line, image_id = map(printable, changed[0])
            notes.append(
                f"{place}/{printable(name)}: {plural(len(changed), 'line')} read as ids, such as "
                f"{line} as {image_id}"
            )
        found.append(SplitList(split_of[name], f"{place}/{name}", ids, True))
    if not plain:
        found = _splits_without_lists(layout, files, place, notes)
    if wanted is not None:
        known = {members.split for members in found}
        for split in wanted:
            if split not in known:
                has = ", ".join(sorted(known))
                raise UserError(f"{folder} has no split {split!r}; it has {has}")
        found = [members for members in found if members.split in wanted]
        plain = {name: lines for name, lines in plain.items() if split_of[name] in wanted}
    return _named_splits(layout.folder, found, notes), plain, notes


def _read_lists(folder: Path, root: Path) -> tuple[str, dict[str, list[str]]]:
    """Returns the folder of the lists, relative, and the lines of each list by file name."""
    sets = subfolder_of_any_case(root, "ImageSets")
    place = subfolder_of_any_case(sets, "Main") if sets else None
    if place is None:
        return "ImageSets/Main", {}
    label = place.relative_to(root).as_posix()
    if not place.resolve().is_relative_to(root):
        raise UserError(
            f"{folder}/{label} is a link to something outside {folder}, where nothing is read: "
            "put the files themselves there"
        )
    names = [path for path in sorted(place.iterdir()) if path.suffix.lower() == ".txt"]
    return label, {
        as_text(path.name): [as_key(line) for line in read_list(path, root)]
        for path in names
        if not is_hidden(path.name)
    }


def _labelled(lines: Sequence[str], files: Files) -> bool:
    """Returns whether each line is an id and a flag. An image may be called "photo 1", too."""
    matches = [match for line in lines if (match := _LABELLED_LINE.fullmatch(line))]
    if not lines or len(matches) < len(lines):
        return False
    names = sum(line in files.images for line in lines)
    return names == 0 or sum(match[1] in files.images for match in matches) > names


def _read_as_ids(lines: Sequence[str], files: Files, layout: Layout) -> list[str]:
    """Reads the lines as ids: without a suffix and without folders above the images.

    Leading folders are left out only if they end with the folder of the images, or if all lines
    have the same: otherwise cam3/f1 could be taken for another image f1.
    """
    found = [_prefix_and_id(line, files.images) for line in lines]
    known = {*IMAGE_FOLDERS, layout.images.label.rpartition("/")[2].lower()}
    free = {
        prefix
        for prefix, image_id in filter(None, found)
        if not (prefix and prefix[-1].lower() in known)
    }
    return [
        line if pair is None or (pair[0] and pair[0] in free and len(free) > 1) else pair[1]
        for line, pair in zip(lines, found, strict=True)
    ]


def _prefix_and_id(line: str, images: Collection[str]) -> tuple[tuple[str, ...], str] | None:
    """Returns the leading folders of a path and the id that the rest is, or None."""
    if line in images:
        return (), line
    parts = tuple(part for part in re.split(r"[/\\]", line) if part not in ("", "."))
    if ".." in parts:
        return None
    for start in range(len(parts)):
        rest = "/".join(parts[start:])
        stem, suffix = os.path.splitext(rest)
        if rest in images:
            return parts[:start], rest
        if suffix.lower() in (*IMAGE_SUFFIXES, ".xml") and stem in images:
            return parts[:start], stem
    return None


def _splits_without_lists(
    layout: Layout, files: Files, place: str, notes: list[str]
) -> list[SplitList]:
    """Returns the folders that are called like splits, else all images as train."""
    ids = sorted({*files.images, *files.annotations})
    names = split_folders(i.partition("/")[0] for i in files.images if "/" in i)
    if not names:
        notes.append(f"{place} has no plain list of ids: all images form the split train")
        return [SplitList("train", "", ids, False)]
    notes.append(f"the folders are the splits: {', '.join(map(printable, names))}")
    above = f"{layout.images.label}/" if layout.images.label else ""
    return [
        SplitList(name, above + name, [i for i in ids if i.startswith(f"{name}/")], False)
        for name in names
    ]


def _named_splits(root: Path, found: list[SplitList], notes: list[str]) -> list[SplitList]:
    """Returns the splits under names that TFDS accepts."""
    splits: dict[str, SplitList] = {}
    for members in found:
        split = re.sub(r"[^\w-]", "_", members.split)
        split = "all_images" if split == "all" else split  # TFDS reserves "all"
        if split in splits:
            raise UserError(
                f"{splits[split].source} and {members.source} in {root} give the same split "
                f"{split}: rename one"
            )
        if split != members.split:
            notes.append(f"the split of {printable(members.source)} is named {split}")
        splits[split] = members._replace(split=split)
    return list(splits.values())
