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
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from scratchdet_jax.datasets.defects import Defect, Kind
from scratchdet_jax.datasets.untrusted import IMAGE_SUFFIXES, as_key, as_text, printable
from scratchdet_jax.errors import UserError

# Names of folders in lower case, by preference.
IMAGE_FOLDERS = ("jpegimages", "images", "image", "imgs", "img")
ANNOTATION_FOLDERS = ("annotations", "annotation", "labels", "xmls", "xml")

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
        hidden: files that accompany others on macOS and Windows, by kind and id.
        hidden_names: every ignored file and folder.
        defects: files whose id is taken by another file, and links to the outside.
        notes: decisions made for the user.
    """

    images: dict[str, Path]
    annotations: dict[str, Path]
    hidden: tuple[dict[str, Path], dict[str, Path]]
    hidden_names: list[str]
    defects: list[Defect]
    notes: list[str]


def find_layout(folder: Path, images: str | None = None, annotations: str | None = None) -> Layout:
    """Decides where the images and annotations are.

    Args:
        folder: the named folder.
        images: the folder of the images, relative to `folder` or absolute, or None. It may be a
            link to a folder outside.
        annotations: the same for the annotations.

    Raises:
        UserError: a folder does not exist, or is a link to the outside that is not named by
            `images` or `annotations`.
    """
    if not folder.is_dir():
        wrong = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {wrong}")
    root = folder.resolve()
    if images is not None or annotations is not None:
        return _named_layout(folder, root, images, annotations)
    photos = _subfolder(root, IMAGE_FOLDERS, IMAGE_SUFFIXES)
    xmls = _subfolder(root, ANNOTATION_FOLDERS, (".xml",))
    if photos is None or xmls is None:
        whole = Part(root, root, "")
        return Layout(root, whole, whole, True)
    for name, flag in ((photos, "--images"), (xmls, "--annotations")):
        if not (root / name).resolve().is_relative_to(root):
            raise UserError(
                f"{folder}/{name} is a link to something outside {folder}: "
                f"if that may be read, name it with `prepare voc {flag}={name}`"
            )
    image_part, annotation_part = (Part(root / name, root, name) for name in (photos, xmls))
    return Layout(root, image_part, _below_xmls(image_part, annotation_part), False)


def find_annotations(folder: Path) -> Layout:
    """Finds the layout as `find_layout` does, but the images need not exist."""
    layout = find_layout(folder)
    name = _subfolder(layout.folder, ANNOTATION_FOLDERS, (".xml",))
    if not layout.is_mixed or name is None:
        return layout
    part = Part(layout.folder / name, layout.folder, name)
    if not part.path.resolve().is_relative_to(part.root):
        return layout
    return Layout(layout.folder, part, part, False)


def list_files(folder: Path, layout: Layout) -> Files:
    """Lists the files of a layout; opens none.

    Raises:
        UserError: the folder is not in a known layout.
    """
    trees = [_walk(layout.images)]
    if layout.annotations != layout.images:
        trees.append(_walk(layout.annotations))
    if layout.is_mixed:
        _refuse_outer_folder(folder, trees[0])
    defects: list[Defect] = []
    tables = []
    for part, tree, suffixes in (
        (layout.images, trees[0], IMAGE_SUFFIXES),
        (layout.annotations, trees[-1], (".xml",)),
    ):
        seen = [name for name in tree.hidden if "/" not in name]
        tables.append(_by_id(layout, part, tree.files, suffixes, defects))
        tables.append(_by_id(layout, part, seen, suffixes, []))
    if layout.is_mixed and not tables[0].keys() & tables[2].keys():
        raise UserError(_not_understood(folder, trees[0]))
    for part, tree in zip((layout.images, layout.annotations), trees, strict=False):
        for name in tree.outside:
            reason = "it is a link to something outside; copy that into the folder"
            where = layout.label(part.path / name)
            defects.append(Defect.of(Kind.OUT_OF_FOLDER, where, reason))
    hidden = [name for tree in trees for name in tree.hidden]
    if layout.images.path != layout.folder:
        hidden += [name for name in sorted(os.listdir(layout.folder)) if _HIDDEN.fullmatch(name)]
    annotations, notes = _with_ids_of_images(layout, tables[0], tables[2])
    return Files(tables[0], annotations, (tables[1], tables[3]), hidden, defects, notes)


def _with_ids_of_images(
    layout: Layout, images: Mapping[str, Path], annotations: Mapping[str, Path]
) -> tuple[dict[str, Path], list[str]]:
    """Returns the annotations under the ids of their images if only one of the two has sub-folders.

    f1.jpg and cam1/f1.xml belong together if no other file of either kind is called f1.
    """
    if layout.is_mixed:
        return dict(annotations), []
    called: tuple[dict[str, list[str]], ...] = ({}, {})
    for table, names in zip((images, annotations), called, strict=True):
        for file_id in table:
            names.setdefault(file_id.rpartition("/")[2], []).append(file_id)
    ids: dict[str, str] = {}
    for name, of_annotation in called[1].items():
        of_image = called[0].get(name, [])
        unique = len(of_image) == len(of_annotation) == 1 and of_image != of_annotation
        if unique and name in (*of_image, *of_annotation):
            ids[of_annotation[0]] = of_image[0]
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


def _subfolder(folder: Path, names: Sequence[str], suffixes: Sequence[str]) -> str | None:
    """Returns the subfolder of a known name with such files; VOC's own name may be empty."""
    known = [name for name in _folders(folder) if name.lower() in names]
    known.sort(key=lambda name: (name not in _STANDARD, names.index(name.lower()), name))
    for name in known:
        if not (folder / name).resolve().is_relative_to(folder):
            return name
        if any(file.lower().endswith(tuple(suffixes)) for file in _visible_files(folder / name)):
            return name
    return next((name for name in known if name in _STANDARD), None)


def _visible_files(folder: Path) -> Iterator[str]:
    for _, _, files in os.walk(folder):
        yield from (name for name in files if not is_hidden(name))


def _below_xmls(images: Part, annotations: Part) -> Part:
    """Returns the annotations' subfolder xmls if all of them are there, as in Annotations/xmls."""
    with os.scandir(annotations.path) as entries:
        names = sorted(entry.name for entry in entries if not is_hidden(entry.name))
    inner = [name for name in names if name.lower() in ("xmls", "xml")]
    if (
        any(name.lower().endswith(".xml") for name in names)
        or len(inner) != 1
        or (images.path / inner[0]).is_dir()
        or not (annotations.path / inner[0]).resolve().is_relative_to(annotations.root)
        or not (annotations.path / inner[0]).is_dir()
    ):
        return annotations
    return annotations._replace(
        path=annotations.path / inner[0], label=f"{annotations.label}/{inner[0]}"
    )


def _named_layout(folder: Path, root: Path, images: str | None, annotations: str | None) -> Layout:
    """Takes what the user names; finds the other part, or takes the same folder."""
    found: list[Part | None] = []
    kinds: tuple[tuple[str | None, str, tuple[str, ...], tuple[str, ...]], ...] = (
        (images, "--images", IMAGE_FOLDERS, IMAGE_SUFFIXES),
        (annotations, "--annotations", ANNOTATION_FOLDERS, (".xml",)),
    )
    for named, flag, names, suffixes in kinds:
        if named is not None:
            found.append(_named_part(folder, root, named, flag))
        else:
            name = _subfolder(root, names, suffixes)
            found.append(None if name is None else Part(root / name, root, name))
    parts: list[Part] = []
    for n, (named, flag, _, suffixes) in enumerate(kinds):
        part, other = found[n], found[1 - n]
        if part is None and other is not None and _holds(other, suffixes):
            part = other
        if part is None:
            raise UserError(
                f"{folder}: no folder of {'images' if n == 0 else 'annotations (.xml)'} was found "
                f"to go with {kinds[1 - n][1]}={kinds[1 - n][0]}: name it with {flag}"
            )
        if named is None and not part.path.resolve().is_relative_to(part.root):
            raise UserError(
                f"{part.path} is a link to something outside {folder}: "
                f"if that may be read, name it with {flag}={part.label}"
            )
        parts.append(part)
    return Layout(root, parts[0], parts[1], False)


def _holds(part: Part, suffixes: tuple[str, ...]) -> bool:
    """Returns whether a folder or one inside it has a file with one of the suffixes."""
    return any(name.lower().endswith(suffixes) for name in _visible_files(part.path))


def _named_part(folder: Path, root: Path, named: str, flag: str) -> Part:
    path = Path(os.path.normpath(named))
    if not path.is_absolute() and not (root / path).exists() and path.exists():
        path = path.absolute()  # as seen from the working directory
    for base in (folder.absolute(), root):
        if path.is_absolute() and path.is_relative_to(base):
            path = path.relative_to(base)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{flag}={named} is outside {folder}: name a folder inside it")
    place = root / path
    if not place.is_dir():
        wrong = "is a file, not a folder" if place.exists() else "does not exist"
        raise UserError(f"{flag}={named}: {folder / path} {wrong}")
    inside = place.resolve().is_relative_to(root)
    label = "" if path == Path() else path.as_posix()
    return Part(place, root if inside else place.resolve(), label)


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
    layout: Layout, part: Part, names: Iterable[str], suffixes: Sequence[str], defects: list[Defect]
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
            defects.append(Defect.of(Kind.TWO_FILES, layout.label(part.path / name), reason))
    return table


def _without_kind(stem: str) -> str | None:
    """Removes folders such as images from the stem; None in folders without training images."""
    *folders, name = stem.split("/")
    if any(folder.lower() in _NO_IMAGES for folder in folders):
        return None
    kinds = (*IMAGE_FOLDERS, *ANNOTATION_FOLDERS)
    return "/".join([*(folder for folder in folders if folder.lower() not in kinds), name])


def _refuse_outer_folder(folder: Path, tree: Tree) -> None:
    """Raises a UserError if a data set is further inside, such as VOCdevkit/VOC2007."""
    if any(_sounds_like_split(name) for name in tree.folders if "/" not in name):
        return
    children = collections.defaultdict(set)
    for name in tree.folders:
        parent, _, last = name.rpartition("/")
        children[parent].add(last.lower())
    inside = [
        name
        for name in tree.folders
        if "imagesets" in children[name]
        or (children[name] & {*IMAGE_FOLDERS} and children[name] & {*ANNOTATION_FOLDERS})
        or (any(map(_sounds_like_split, children[name])) and _has_both(tree, name))
    ]
    outermost = [
        name for name in inside if not any(str(p) in inside for p in PurePosixPath(name).parents)
    ]
    if outermost:
        known = " or ".join(printable(str(folder / name)) for name in outermost)
        raise UserError(
            f"{folder} is not in VOC layout: there is a data set further inside; "
            f"did you mean {known}?"
        )


def _has_both(tree: Tree, place: str) -> bool:
    """Returns whether there are images and annotations in a folder or further inside."""
    suffixes = {
        os.path.splitext(name)[1].lower() for name in tree.files if name.startswith(f"{place}/")
    }
    return ".xml" in suffixes and not suffixes.isdisjoint(IMAGE_SUFFIXES)


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
    found = "found " + (" and ".join(places) or "no images and no .xml files")
    if tree.outside:
        found += f" and links to folders outside, such as {printable(tree.outside[0])}"
    expected = (
        "expected JPEGImages/ and Annotations/, images/ and annotations/, or each image with its "
        ".xml file beside it, in the folder itself or in train/, valid/, test/"
    )
    flags = [
        f"--images={_likely_folder(counts, IMAGE_SUFFIXES)}",
        f"--annotations={_likely_folder(counts, ('.xml',))}",
    ]
    hint = f"name other folders with `prepare voc {' '.join(flags)}`"
    if not any(suffix == ".xml" for _, suffix in counts) and any(s == ".json" for _, s in counts):
        hint = "for COCO's .json files use `prepare coco`"
    return f"{folder} is not in VOC layout: {found}; {expected}; {hint}"


def _likely_folder(counts: collections.Counter[tuple[str, str]], suffixes: Sequence[str]) -> str:
    """Suggests a folder for a flag: the one with most files, as far inside as has all of them."""
    tops: collections.Counter[str] = collections.Counter()
    for (place, suffix), count in counts.items():
        tops[place.partition("/")[0]] += count * (suffix in suffixes)
    if not +tops:
        return "FOLDER"
    ((top, _),) = tops.most_common(1)
    places = [p for p, suffix in counts if suffix in suffixes and p.partition("/")[0] == top]
    return shlex.quote(printable(os.path.commonpath(places)) or ".")
