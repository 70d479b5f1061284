"""Reads a YOLO data.yaml and lists the images and label files that it names; opens none of them."""

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from reprlib import repr as brief
from typing import Any, NamedTuple

import yaml

from scratchdet_jax.datasets.defects import Defect, Kind
from scratchdet_jax.datasets.untrusted import (
    IMAGE_SUFFIXES,
    MAX_LIST_BYTES,
    as_key,
    as_text,
    decode_text,
    printable,
    read_inside,
)
from scratchdet_jax.errors import UserError, plural

_MAX_YAML_BYTES = 4 << 20
# Keys of data.yaml by split; Ultralytics reads the second one too.
_SPLITS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
_NO_LABELS = ("classes.txt", "labels.txt", "notes.txt")  # LabelImg and CVAT write them


class YoloImage(NamedTuple):
    """An image file that a split names.

    Attributes:
        path: the file.
        name: relative to the root, with slashes.
        image_id: the name without its suffix.
        label: the label file, or None if there is none.
    """

    path: Path
    name: str
    image_id: str
    label: Path | None


class YoloListing(NamedTuple):
    """The files of a data set before any of them is opened.

    Attributes:
        root: the resolved folder that contains everything.
        class_names: in the order of the class numbers.
        keypoint_values: how many values of a label line are keypoints; 0 if it is no pose set.
        splits: the images that exist, by split.
        listed: number of different images that were named, by split.
        defects: found so far.
        notes: decisions so far.
    """

    root: Path
    class_names: tuple[str, ...]
    keypoint_values: int
    splits: dict[str, list[YoloImage]]
    listed: dict[str, int]
    defects: list[Defect]
    notes: list[str]


def list_yolo(data: Path, folder: Path | None) -> YoloListing:
    """Reads data.yaml and lists the files of its splits.

    Args:
        data: the YAML file.
        folder: stands for `path` in it; None: its `path`, or else the folder that it is in. Nothing
            outside is read.

    Raises:
        UserError: a file or folder is missing or unreadable, or the class names are unusable.
    """
    content = _read_yaml(data)
    root = (folder or data.resolve().parent).resolve()
    if not root.is_dir():
        raise UserError(f"the folder {folder} does not exist")
    defects: list[Defect] = []
    notes: list[str] = []
    names = _class_names(data, content, defects, notes)
    entries = _split_entries(data, content)
    finder = _Finder(data, root, content.get("path") if folder is None else None, notes)
    base = finder.base(entries)
    splits, listed = {}, {}
    for split, texts in entries.items():
        lister = _Lister(root, base, f"{as_text(data.name)} ({split})", defects)
        for text in texts:
            place = finder.find(base, split, text)
            if place is None:
                reason = f"{text!r} does not exist in {base}"
                defects.append(Defect.of(Kind.EMPTY_SPLIT, f"{data.name} ({split})", reason))
            else:
                lister.add(place)
        splits[split], listed[split] = lister.images(), lister.listed
        if lister.hidden:
            notes.append(f"{split}: hidden files passed over: {lister.hidden}")
    _note_unused_labels(root, splits, defects)
    return YoloListing(root, names, _keypoint_values(content), splits, listed, defects, notes)


def label_path(name: str) -> str:
    """Locates an image's label file: `labels` for the last folder `images`, suffix `.txt`."""
    *folders, file = name.split("/")
    if "images" in folders:
        last = len(folders) - 1 - folders[::-1].index("images")
        folders[last] = "labels"
    return "/".join([*folders, os.path.splitext(file)[0] + ".txt"])


def _read_yaml(data: Path) -> Mapping[str, Any]:
    if data.is_dir():
        raise UserError(f"{data} is a folder: name the file in it, such as {data / 'data.yaml'}")
    try:
        file = data.resolve(strict=True)  # a link is followed: the user named this very file
        content = yaml.safe_load(decode_text(read_inside(file, file.parent, _MAX_YAML_BYTES)))
    except FileNotFoundError:
        raise UserError(f"{data} does not exist") from None
    except RecursionError:
        raise UserError(f"{data} cannot be read: its YAML is nested too deeply") from None
    except (OSError, ValueError, RuntimeError, yaml.YAMLError) as error:
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
        raise UserError(f"{data} cannot be read as YAML: {printable(reason)}") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{data} is not a YOLO data file: it must have the fields train and names, such as "
            "Ultralytics' data.yaml"
        )
    return content


def _class_names(
    data: Path, content: Mapping[str, Any], defects: list[Defect], notes: list[str]
) -> tuple[str, ...]:
    stated, count = content.get("names"), content.get("nc")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise UserError(f"{data}: nc is {brief(count)}, not the number of classes")
    if stated is None and count is not None:
        notes.append(
            f"{data.name} has no names: the classes are called class_0 to class_{count - 1}"
        )
        return tuple(f"class_{i}" for i in range(count))
    if isinstance(stated, dict):
        numbers = [int(k) if isinstance(k, str) and k.isdecimal() else k for k in stated]
        if sorted(map(repr, numbers)) != sorted(map(repr, range(len(stated)))):
            raise UserError(
                f"{data}: the keys of names must be the class numbers 0, 1, 2 …, but they are "
                f"{printable(brief(list(stated)))}"
            )
        stated = [value for _, value in sorted(zip(numbers, stated.values(), strict=True))]
    if not isinstance(stated, list) or not stated:
        raise UserError(
            f"{data} has no class names: add names, a list or a table from class numbers to names"
        )
    if count is not None and count != len(stated):
        raise UserError(f"{data}: nc is {count}, but names has {plural(len(stated), 'name')}")
    names = tuple(_class_name(data, i, value, defects) for i, value in enumerate(stated))
    for name in names:
        if names.count(name) > 1:
            same = " and ".join(str(i) for i, other in enumerate(names) if other == name)
            raise UserError(
                f"{data}: the classes {same} have one name, {printable(repr(name))}: give each "
                "its own (--rename merges classes)"
            )
    return names


def _class_name(data: Path, number: int, value: Any, defects: list[Defect]) -> str:
    if isinstance(value, str):
        name = " ".join(value.encode("utf-8", "replace").decode().split())
        if name:
            return name
    elif isinstance(value, (list, dict)):
        raise UserError(f"{data}: the name of class {number} is {printable(brief(value))}, no text")
    elif value is not None:
        name = str(value)
        reason = f"names: class {number} is {json.dumps(value, default=str)}, read as {name!r}"
        if isinstance(value, bool):
            reason += "; put yes, no, on and off in quotes"
        defects.append(Defect.of(Kind.CATEGORY_NAME, data.name, reason))
        return name
    defects.append(Defect.of(Kind.NO_CLASS_NAME, data.name, f"names: class {number}"))
    return f"class_{number}"


def _split_entries(data: Path, content: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the folders and lists of each split, as written."""
    entries = {}
    for split, keys in _SPLITS.items():
        value = next((content[key] for key in keys if content.get(key)), None)
        if value is None:
            continue
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(
                f"{data}: {split} is {printable(brief(value))}, not a folder, a list of folders or "
                "a .txt file that lists images"
            )
        entries[split] = [text.strip() for text in texts]
    if not entries:
        raise UserError(f"{data} names no images: add train, the folder of the training images")
    return entries


def _keypoint_values(content: Mapping[str, Any]) -> int:
    shape = content.get("kpt_shape")
    if isinstance(shape, list) and len(shape) == 2 and all(isinstance(n, int) for n in shape):
        return shape[0] * shape[1]
    return 0


class _Finder:
    """Finds the folders and lists that data.yaml names, inside the root."""

    def __init__(self, data: Path, root: Path, stated: Any, notes: list[str]) -> None:
        self._data, self._root, self._notes = data, root, notes
        self._stated = stated if isinstance(stated, str) and stated.strip() else None

    def base(self, entries: Mapping[str, Sequence[str]]) -> Path:
        """Returns the folder that the entries are relative to: `path`, or else the root."""
        split, texts = next(iter(entries.items()))
        bases = [self._root]
        if self._stated is not None:
            path = (self._root / _slashes(self._stated)).resolve()
            if path.is_relative_to(self._root) and path.is_dir():
                bases = [path, self._root]
        for base in bases:
            if any(self.find(base, split, text) for text in texts):
                if self._stated is not None and base != bases[0]:
                    self._notes.append(f"path {self._stated} of {self._data.name} is not used")
                elif self._stated is not None and len(bases) == 1:
                    self._notes.append(
                        f"path {self._stated} of {self._data.name} is not in {self._root}, so the "
                        "splits are looked up there"
                    )
                return base
        looked = " and ".join(str(base) for base in bases)
        raise UserError(
            f"{self._data}: {split} is {printable(repr(texts[0]))}, which does not exist in "
            f"{looked}{self._advice(texts[0])}"
        )

    def find(self, base: Path, split: str, text: str) -> Path | None:
        """Returns an existing folder or list; None if there is none inside the root."""
        text = _slashes(text)
        inner = text
        while inner.startswith("../"):  # as Roboflow writes: ../train/images beside data.yaml
            inner = inner[3:]
        for path in (base / text, base / inner):
            if path.exists() and path.resolve().is_relative_to(self._root):
                if path.is_dir() or path.suffix.lower() == ".txt":
                    return path.resolve()
                raise UserError(
                    f"{self._data}: {split} names {path}, which is neither a folder nor a .txt "
                    "file that lists images"
                )
        return None

    def _advice(self, text: str) -> str:
        """Says where the images may be, if they are outside the root."""
        stated = _slashes(self._stated or "")
        for start in (self._root / stated, Path.cwd() / stated):
            place = start / _slashes(text)
            if place.exists():
                return (
                    f" (nothing outside is read); {place.resolve()} exists: name the folder that "
                    f"contains everything, such as --folder={printable(str(start.resolve()))}"
                )
        return ": name the folder that contains it with --folder"


def _slashes(text: str) -> str:
    return text.replace("\\", "/")


class _Lister:
    """Collects the images of one split."""

    def __init__(self, root: Path, base: Path, where: str, defects: list[Defect]) -> None:
        self._root, self._base, self._where, self._defects = root, base, where, defects
        self._names: dict[str, int] = {}
        self.listed = self.hidden = 0

    def add(self, place: Path) -> None:
        """Adds the images of a folder, or those that a file lists."""
        names = self._walk(place) if place.is_dir() else self._read_list(place)
        for name in names:
            self._names[name] = self._names.get(name, 0) + 1
            self.listed += self._names[name] == 1

    def images(self) -> list[YoloImage]:
        """Returns the images, each once; of several with one id the first in IMAGE_SUFFIXES."""
        by_id: dict[str, list[str]] = {}
        for name, count in self._names.items():
            by_id.setdefault(as_key(os.path.splitext(name)[0]), []).append(name)
            if count > 1:
                self._note(Kind.LISTED_TWICE, f"{as_text(name)} is listed {count} times")
        found = []
        for image_id, names in by_id.items():
            best = min(names, key=lambda n: (_rank(n), n))
            for name in names:
                if name != best:
                    self._note(Kind.TWO_FILES, f"{as_text(name)}: {as_text(best)} is used")
            found.append(YoloImage(self._root / best, as_text(best), image_id, self._label(best)))
        return found

    def _label(self, name: str) -> Path | None:
        """Returns the label file: in the folder labels, or else beside the image."""
        for candidate in (label_path(name), os.path.splitext(name)[0] + ".txt"):
            if os.path.lexists(self._root / candidate):
                return self._root / candidate
        return None

    def _walk(self, folder: Path) -> Iterator[str]:
        for parent, folders, files in os.walk(folder):
            folders.sort()
            for file in sorted(files):
                if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES:
                    if file.startswith("."):
                        self.hidden += 1
                    else:
                        yield Path(parent, file).relative_to(self._root).as_posix()

    def _read_list(self, path: Path) -> Iterator[str]:
        """Yields the images that a file lists, relative to it or to the base."""
        try:
            text = decode_text(read_inside(path, self._root, MAX_LIST_BYTES))
        except ValueError as error:
            raise UserError(f"{printable(str(path))} cannot be read: {error}") from None
        for line in map(str.strip, text.split("\n")):
            if not line:
                continue
            if (name := self._listed_name(path, line)) is not None:
                yield name

    def _listed_name(self, path: Path, line: str) -> str | None:
        parts = PureWindowsPath(line)
        plain = os.path.normpath(_slashes(line)) if "\0" not in line else ""
        starts = [Path("/")] if parts.root else [path.parent, self._base]
        outside = not plain or plain.startswith("..")
        for start in starts if plain else ():
            place = Path(os.path.normpath(start / plain))
            if not place.is_relative_to(self._root):
                outside = True
            elif os.path.lexists(place):
                return place.relative_to(self._root).as_posix()
        self.listed += 1
        kind = Kind.OUT_OF_FOLDER if outside and (parts.root or ".." in line) else Kind.NO_IMAGE
        hint = f"is not in {self._root}" if kind == Kind.OUT_OF_FOLDER else "does not exist"
        self._note(kind, f"{as_text(path.name)}: {as_text(line)} {hint}")
        return None

    def _note(self, kind: Kind, reason: str) -> None:
        self._defects.append(Defect.of(kind, self._where, reason))


def _rank(name: str) -> int:
    suffix = os.path.splitext(name)[1].lower()
    return IMAGE_SUFFIXES.index(suffix) if suffix in IMAGE_SUFFIXES else len(IMAGE_SUFFIXES)


def _note_unused_labels(
    root: Path, splits: Mapping[str, Sequence[YoloImage]], defects: list[Defect]
) -> None:
    """Records label files, in the folders that have used ones, that belong to no image."""
    images = list(itertools.chain.from_iterable(splits.values()))
    used = {image.label for image in images if image.label}
    for folder in sorted({(root / label_path(image.name)).parent for image in images}):
        for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
            path = folder / name
            if not name.endswith(".txt") or name.startswith(".") or name in _NO_LABELS:
                continue
            if path not in used and not _is_a_list(path, splits):
                where = as_text(path.relative_to(root).as_posix())
                defects.append(Defect.of(Kind.NO_IMAGE, where, "it labels no image of the splits"))


def _is_a_list(path: Path, splits: Mapping[str, Sequence[YoloImage]]) -> bool:
    return path.stem in {*splits, "trainval", "valid", "validation"}
