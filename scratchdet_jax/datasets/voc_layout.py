"""Finds the images and annotations of a user's folder, in the layouts that tools write.

An id is the path of a file below the folder of its kind, without the suffix:

- JPEGImages/a.jpg + Annotations/a.xml, images/a.jpg + annotations/a.xml: a
- JPEGImages/cam1/a.jpg + Annotations/cam1/a.xml: cam1/a
- JPEGImages/a.jpg + Annotations/cam1/a.xml: a, and the other way round cam1/a, if no other file is
  called a
- a.jpg + a.xml: a
- train/a.jpg + train/a.xml, train/images/a.jpg + train/annotations/a.xml: train/a
"""

import collections
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scratchdet_jax.datasets.objects import Defects, Kind
from scratchdet_jax.datasets.untrusted import IMAGE_SUFFIXES, as_key, as_text, printable
from scratchdet_jax.errors import UserError
from scratchdet_jax.paths import local_path


class _FileKind(NamedTuple):
    """The files of one kind: their flag, the names of their folders and their suffixes.

    The names are in lower case; earlier ones are preferred, and so are earlier suffixes.
    """

    flag: str
    folders: tuple[str, ...]
    suffixes: tuple[str, ...]


IMAGE_FOLDERS = ("jpegimages", "images", "image", "imgs", "img")

_IMAGES = _FileKind("--images", IMAGE_FOLDERS, IMAGE_SUFFIXES)
_ANNOTATIONS = _FileKind(
    "--annotations", ("annotations", "annotation", "labels", "xmls", "xml"), (".xml",)
)

_STANDARD = ("JPEGImages", "Annotations")
_HIDDEN = re.compile(r"\._.*|\.ds_store|thumbs\.db|desktop\.ini|__macosx|@eadir", re.IGNORECASE)
_NO_IMAGES = ("imagesets", "segmentationclass", "segmentationobject")
_COUNTED = (*IMAGE_SUFFIXES, ".xml", ".txt", ".json", ".csv")  # in the message about a layout
_DEEPEST = 8  # folders in folders


class Part(NamedTuple):
    """The folder of the images or of the annotations.

    Attributes:
        path: the folder, which may be a link.
        root: the resolved folder that its files must be in.
        label: its path relative to the named folder; "" if it is the named folder.
    """

    path: Path
    root: Path
    label: str


class Layout(NamedTuple):
    """Where the images and annotations are.

    Attributes:
        folder: the named folder, resolved.
        images: the folder of the images.
        annotations: the folder of the annotations.
        is_mixed: both are in the named folder, each annotation beside its image or in a folder
            beside that of its image.
    """

    folder: Path
    images: Part
    annotations: Part
    is_mixed: bool

    @property
    def is_standard(self) -> bool:
        """Returns whether the folders are named as in PASCAL VOC."""
        return (self.images.label, self.annotations.label) == _STANDARD

    def label(self, path: Path) -> str:
        """Returns the path of a file relative to the named folder, for messages."""
        return as_text(path.relative_to(self.folder).as_posix())


class Tree(NamedTuple):
    """What a folder contains, as paths relative to it.

    Attributes:
        files: files, and folders whose names end like images and annotations.
        folders: the folders.
        hidden: ignored files and folders.
        outside: links to folders outside, which were not followed.
    """

    files: list[str]
    folders: list[str]
    hidden: list[str]
    outside: list[str]


class Files(NamedTuple):
    """The files of both kinds.

    Attributes:
        images: image files by id, in the order of the ids.
        annotations: annotation files by id, in the order of the ids.
        hidden: every ignored file and folder, such as those that macOS and Windows add.
        defects: files whose id is taken by another file, and links to the outside.
        notes: decisions made for the user.
    """

    images: dict[str, Path]
    annotations: dict[str, Path]
    hidden: list[str]
    defects: Defects
    notes: list[str]


def find_layout(folder: Path, images: str | None = None, annotations: str | None = None) -> Layout:
    """Decides where the images and annotations are.

    `images` and `annotations` name the folders of both, relative to `folder` or absolute; they may
    be links to folders outside. If only one is named and the other is not found, both are in the
    same folder.

    Raises:
        UserError: a folder does not exist, or is a link to the outside that is not named by
            `images` or `annotations`.
    """
    if not folder.is_dir():
        wrong = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {wrong}")
    root = folder.resolve()
    photos = _find_part(folder, root, _IMAGES, images)
    xmls = _find_part(folder, root, _ANNOTATIONS, annotations)
    whole = Part(root, root, "")
    if (photos is None or xmls is None) and images is None and annotations is None:
        return Layout(root, whole, whole, True)
    if xmls is not None and annotations is None:
        xmls = _below_xmls(xmls)
    return Layout(root, photos or xmls or whole, xmls or photos or whole, False)


def find_annotations(folder: Path) -> Layout:
    """Finds the layout as `find_layout` does, but the images need not exist."""
    layout = find_layout(folder)
    part = _find_part(folder, layout.folder, _ANNOTATIONS) if layout.is_mixed else None
    return layout if part is None else Layout(layout.folder, part, part, False)


def list_files(folder: Path, layout: Layout) -> Files:
    """Lists the files of a layout; opens none.

    Raises:
        UserError: the folder is not in a known layout.
    """
    parts = list(dict.fromkeys((layout.images, layout.annotations)))
    trees = [_walk(part) for part in parts]
    if layout.is_mixed:
        _refuse_outer_folder(folder, trees[0])
    defects = Defects()
    images = _by_id(layout, layout.images, trees[0].files, IMAGE_SUFFIXES, defects)
    annotations = _by_id(layout, layout.annotations, trees[-1].files, (".xml",), defects)
    if layout.is_mixed and not images.keys() & annotations.keys():
        raise UserError(_not_understood(folder, trees[0]))
    for part, tree in zip(parts, trees, strict=True):
        for name in tree.outside:
            reason = "it is a link to something outside; copy that into the folder"
            where = layout.label(part.path / name)
            defects.note(Kind.OUT_OF_FOLDER, where, reason)
    hidden = [name for tree in trees for name in tree.hidden]
    if layout.images.path != layout.folder:
        hidden += [name for name in sorted(os.listdir(layout.folder)) if is_hidden(name)]
    annotations, notes = _with_ids_of_images(layout, images, annotations)
    return Files(images, annotations, hidden, defects, notes)


def _with_ids_of_images(
    layout: Layout, images: Mapping[str, Path], annotations: Mapping[str, Path]
) -> tuple[dict[str, Path], list[str]]:
    """Returns the annotations under the ids of their images if only one of the two has sub-folders.

    f1.jpg and cam1/f1.xml belong together if no other file of either kind is called f1.
    """
    if layout.is_mixed:
        return dict(annotations), []
    called: dict[str, tuple[list[str], list[str]]] = {}
    for position, table in enumerate((images, annotations)):
        for file_id in table:
            called.setdefault(file_id.rpartition("/")[2], ([], []))[position].append(file_id)
    ids = {
        xmls[0]: photos[0]
        for name, (photos, xmls) in called.items()
        if len(photos) == len(xmls) == 1 and photos != xmls and name in (photos[0], xmls[0])
    }
    if not ids:
        return dict(annotations), []
    first = min(ids)
    image, annotation = (
        printable(layout.label(path)) for path in (images[ids[first]], annotations[first])
    )
    note = (
        "only one of image and annotation is in a sub-folder, and they are matched by name: "
        f"{len(ids):,}, such as {image} and {annotation}"
    )
    renamed = {ids.get(file_id, file_id): path for file_id, path in annotations.items()}
    return dict(sorted(renamed.items())), [note]


def split_folders(names: Iterable[str]) -> list[str]:
    """Returns the folders that are splits: all if one is for training or all sound like splits."""
    folders = sorted(set(names))
    training = [name for name in folders if re.match("train", name, re.IGNORECASE)]
    return folders if training or all(map(_sounds_like_split, folders)) else []


def is_hidden(name: str) -> bool:
    """Returns whether it is a file that macOS or Windows puts beside others, such as ._a.jpg."""
    return bool(_HIDDEN.fullmatch(name))


def subfolder_of_any_case(folder: Path, name: str) -> Path | None:
    """Finds the folder of that name, in any upper and lower case."""
    if (folder / name).is_dir():
        return folder / name
    same = [other for other in _folders(folder) if other.lower() == name.lower()]
    return folder / same[0] if same else None


def _sounds_like_split(name: str) -> bool:
    return bool(re.match("train|val|test|dev|eval", name, re.IGNORECASE))


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def _find_part(folder: Path, root: Path, kind: _FileKind, named: str | None = None) -> Part | None:
    """Returns the folder that is `named`, or else the one of a known name; None if there is none.

    The folder in `root` must have files of the kind; VOC's own may be empty.
    """
    if named is not None:
        return _named_part(folder, root, named, kind.flag)
    known = [name for name in _folders(root) if name.lower() in kind.folders]
    known.sort(key=lambda name: (name not in _STANDARD, kind.folders.index(name.lower()), name))
    for name in known:
        if not (root / name).resolve().is_relative_to(root):
            raise UserError(
                f"{folder}/{name} is a link to something outside {folder}: if that may be read, "
                f"name it with `prepare voc {kind.flag}={name}`"
            )
        files = (path.name for path in (root / name).rglob("*"))
        if any(f.lower().endswith(kind.suffixes) and not is_hidden(f) for f in files):
            return Part(root / name, root, name)
    return next((Part(root / name, root, name) for name in known if name in _STANDARD), None)


def _below_xmls(annotations: Part) -> Part:
    """Returns the annotations' subfolder xmls if all of them are there, as in Annotations/xmls."""
    inner = annotations.path / "xmls"
    names = [name.lower() for name in os.listdir(annotations.path) if not is_hidden(name)]
    beside = any(name.endswith(".xml") for name in names)
    if beside or not inner.is_dir() or not inner.resolve().is_relative_to(annotations.root):
        return annotations
    return annotations._replace(path=inner, label=f"{annotations.label}/xmls")


def _named_part(folder: Path, root: Path, named: str, flag: str) -> Part:
    """Returns the folder that a flag names, as seen from `folder` or the working directory."""
    found = next((place for place in (root / named, local_path(named)) if place.is_dir()), None)
    if found is None:
        raise UserError(f"{flag}={named}: there is no such folder in {folder}")
    for base in (root, os.path.abspath(folder)):
        label = os.path.relpath(found, base)
        if label.partition(os.sep)[0] != os.pardir:
            place = root / label
            inside = place.resolve().is_relative_to(root)
            return Part(place, root if inside else place.resolve(), "" if label == "." else label)
    raise UserError(f"{flag}={named} is outside {folder}: name a folder inside it")


def _walk(part: Part) -> Tree:
    tree = Tree([], [], [], [])
    _walk_folder(part, "", (os.path.realpath(part.path),), tree)
    return tree


def _walk_folder(part: Part, place: str, above: tuple[str, ...], tree: Tree) -> None:
    """Adds a folder to the tree; `above`: the resolved folders that lead to it, itself included."""
    with os.scandir(part.path / place) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        name = f"{place}/{entry.name}" if place else entry.name
        if is_hidden(entry.name):
            tree.hidden.append(name)
        elif entry.name.lower().endswith((*IMAGE_SUFFIXES, ".xml")) or not entry.is_dir():
            tree.files.append(name)
        elif entry.name.startswith("."):
            tree.hidden.append(name)
        else:
            real = os.path.realpath(entry.path)
            if not Path(real).is_relative_to(part.root):
                tree.outside.append(name)
            elif real not in above and len(above) <= _DEEPEST:
                tree.folders.append(name)
                _walk_folder(part, name, (*above, real), tree)


def _by_id(
    layout: Layout, part: Part, names: Iterable[str], suffixes: Sequence[str], defects: Defects
) -> dict[str, Path]:
    """Finds the files of one kind by id; of several, the earliest in `suffixes` counts."""
    found: list[tuple[str, int, str]] = []
    for name in names:
        path_stem, suffix = os.path.splitext(name)
        if suffix.lower() not in suffixes:
            continue
        stem = _without_kind(path_stem) if layout.is_mixed else path_stem
        if stem is not None:
            found.append((as_key(stem), suffixes.index(suffix.lower()), name))
    table: dict[str, Path] = {}
    for key, _, name in sorted(found):
        path = table.setdefault(key, part.path / name)
        if path != part.path / name:
            reason = f"{as_text(path.relative_to(part.path).as_posix())} is used"
            defects.note(Kind.TWO_FILES, layout.label(part.path / name), reason)
    return table


def _without_kind(stem: str) -> str | None:
    """Removes folders such as images from the stem; None in folders without training images."""
    *folders, name = stem.split("/")
    if any(folder.lower() in _NO_IMAGES for folder in folders):
        return None
    kinds = (*_IMAGES.folders, *_ANNOTATIONS.folders)
    return "/".join([*(folder for folder in folders if folder.lower() not in kinds), name])


def _refuse_outer_folder(folder: Path, tree: Tree) -> None:
    """Raises a UserError if a data set is further inside, such as VOCdevkit/VOC2007."""
    if any(_sounds_like_split(name) for name in tree.folders if "/" not in name):
        return
    children = collections.defaultdict(set)
    for name in tree.folders:
        parent, _, last = name.rpartition("/")
        children[parent].add(last.lower())
    inside: list[str] = []
    for place in tree.folders:
        files = [name.lower() for name in tree.files if name.startswith(f"{place}/")]
        has_both = all(any(f.endswith(k.suffixes) for f in files) for k in (_IMAGES, _ANNOTATIONS))
        below = children[place]
        if not any(place.startswith(f"{outer}/") for outer in inside) and (
            "imagesets" in below
            or (below & {*_IMAGES.folders} and below & {*_ANNOTATIONS.folders})
            or (any(map(_sounds_like_split, below)) and has_both)
        ):
            inside.append(place)
    if inside:
        known = " or ".join(printable(str(folder / name)) for name in inside)
        raise UserError(
            f"{folder} is not in VOC layout: there is a data set further inside; "
            f"did you mean {known}?"
        )


def _not_understood(folder: Path, tree: Tree) -> str:
    """Says what was found, what was expected and how to name the folders."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for name in tree.files:
        suffix = os.path.splitext(name)[1].lower()
        if suffix in _COUNTED:
            counts[name.rpartition("/")[0], suffix] += 1
    places = [
        f"{count} {suffix} in {printable(place) + '/' if place else 'the folder itself'}"
        for (place, suffix), count in counts.most_common(4)
    ]
    return (
        f"{folder} is not in VOC layout: found "
        f"{' and '.join(places) or 'no images and no .xml files'}; expected JPEGImages/ and "
        "Annotations/, images/ and annotations/, or each image with its .xml file beside it, in "
        "the folder itself or in train/, valid/, test/; name other folders with `prepare voc "
        "--images=FOLDER --annotations=FOLDER`; for COCO's .json files use `prepare coco`, for "
        "YOLO's .txt files `prepare yolo`"
    )
