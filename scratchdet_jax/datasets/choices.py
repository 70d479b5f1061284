"""The user's choices for a data set of their own: its classes, and how it is divided."""

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from scratchdet_jax.datasets.objects import Contents, UsableImage
from scratchdet_jax.datasets.untrusted import printable
from scratchdet_jax.errors import UserError, plural


class Choices(NamedTuple):
    """What is changed between reading a data set and writing it.

    Classes are renamed first; `drop` and `classes` refer to the new names.

    Attributes:
        classes: the classes to keep, in the order of their labels; None: all.
        drop: classes to leave out.
        rename: (old, new) pairs; several classes with one new name become one class.
        val: share of the images that form the split val, in [0, 1).
        test: share of the images that form the split test.
        divided: the split that is divided; "": the only one.
        seed: of the division.
    """

    classes: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    val: float = 0.0
    test: float = 0.0
    divided: str = ""
    seed: int = 0

    def check(self) -> None:
        """Raises a UserError if the choices contradict themselves."""
        if self.classes is not None and (
            not self.classes or "" in self.classes or len(set(self.classes)) < len(self.classes)
        ):
            raise UserError(f"the class names {list(self.classes)} are empty or repeated")
        if both := sorted({*(self.classes or ())} & {*self.drop}):
            raise UserError(f"the class {both[0]!r} is in --classes and in --drop")
        old = Counter(name for name, _ in self.rename)
        if twice := [name for name, count in old.items() if count > 1]:
            raise UserError(f"--rename gives the class {twice[0]!r} two new names")
        if min(self.val, self.test) < 0 or self.val + self.test >= 1:
            raise UserError(
                f"--val={self.val:g} and --test={self.test:g} must be shares of 0 or more that "
                "leave something for training, such as --val=0.2 for a fifth"
            )
        if self.divided and not self.divides:
            raise UserError("--from names a split to divide: add --val=0.2, for example")

    @property
    def divides(self) -> bool:
        """Returns whether a split is divided."""
        return self.val > 0 or self.test > 0

    def record(self) -> dict[str, Any]:
        """Returns the choices that were made, as JSON."""
        values = json.loads(json.dumps(self._asdict()))
        defaults = json.loads(json.dumps(NO_CHOICES._asdict()))
        chosen = {key: value for key, value in values.items() if value != defaults[key]}
        chosen.pop("seed", None)
        return {**chosen, "seed": self.seed} if self.divides else chosen

    def sign(self, fingerprint: str) -> str:
        """Returns the fingerprint of an input with these choices; unchanged if there are none."""
        record = self.record()
        if not record:
            return fingerprint
        text = json.dumps([fingerprint, record], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def names_before_renaming(self, names: Sequence[str] | None) -> list[str] | None:
        """Returns the classes that `names` are called in the input, beside the names themselves."""
        if names is None:
            return None
        return [*names, *(old for old, new in self.rename if new in names and old not in names)]

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Choices":
        """Inverts `record`."""
        values = {key: value for key, value in record.items() if key in cls._fields}
        if values.get("classes") is not None:
            values["classes"] = tuple(values["classes"])
        values["drop"] = tuple(values.get("drop", ()))
        values["rename"] = tuple((old, new) for old, new in values.get("rename", ()))
        return cls(**values)


NO_CHOICES = Choices()


def check_names(choices: Choices, names: Sequence[str], source: str) -> None:
    """Raises a UserError if a choice names a class that the data set does not have."""
    for old, _ in choices.rename:
        _require(old, names, "--rename", source)
    renamed = dict(choices.rename)
    after = [renamed.get(name, name) for name in names]
    for flag, chosen in (("--drop", choices.drop), ("--classes", choices.classes or ())):
        for name in chosen:
            _require(name, after, flag, source + (" after --rename" if choices.rename else ""))
    if choices.drop and not set(after) - {*choices.drop}:
        raise UserError(f"--drop leaves no class of {source}: {', '.join(dict.fromkeys(after))}")


def choose_classes(contents: Contents, choices: Choices, source: str) -> Contents:
    """Renames, merges and drops classes; boxes that are left out are counted in a note.

    A merged class has the position and the category id of the class that had its name before, or
    else of the first one.

    Raises:
        UserError: see `check_names`.
    """
    if not (choices.rename or choices.drop or choices.classes is not None):
        return contents
    check_names(choices, contents.class_names, source)
    names, ids = _chosen_table(contents, choices)
    renamed, kept = dict(choices.rename), set(names)
    left_out: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    splits: dict[str, list[UsableImage]] = {}
    seen = set()
    for split, images in contents.splits.items():
        splits[split] = []
        for image in images:
            first = (image.path, image.image_id) not in seen  # an image may be in several splits
            seen.add((image.path, image.image_id))
            objects = []
            for item in image.objects:
                name = renamed.get(item.name, item.name)
                if name in kept:
                    objects.append(item._replace(name=name))
                    counted[item.name] += first
                else:
                    left_out[name] += first
            splits[split].append(image._replace(objects=objects))
    notes = [
        f"the class {old} is renamed to {new} ({plural(counted[old], 'box')})"
        for old, new in choices.rename
        if new in kept
    ]
    if total := sum(left_out.values()):
        each = ", ".join(f"{name} {count:,}" for name, count in sorted(left_out.items()))
        notes.append(f"boxes of classes that were not chosen, left out: {total:,} ({each})")
    return contents._replace(
        splits=splits, class_names=names, category_ids=ids, notes=[*contents.notes, *notes]
    )


def _chosen_table(
    contents: Contents, choices: Choices
) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Returns the chosen class names and their category ids."""
    renamed = dict(choices.rename)
    first: dict[str, int] = {}
    for position, name in enumerate(contents.class_names):
        if renamed.get(name, name) == name:
            first[name] = position
    for position, name in enumerate(contents.class_names):
        first.setdefault(renamed.get(name, name), position)
    names = choices.classes
    if names is None:
        names = tuple(n for n in sorted(first, key=first.__getitem__) if n not in choices.drop)
    ids = contents.category_ids
    return names, None if ids is None else tuple(ids[first[name]] for name in names)


def _require(name: str, names: Sequence[str], flag: str, source: str) -> None:
    if name in names:
        return
    close = difflib.get_close_matches(name, names, n=2)
    hint = f"; did you mean {' or '.join(map(printable, close))}?" if close else ""
    known = printable(", ".join(dict.fromkeys(names)))
    raise UserError(
        f"{flag} names the class {name!r}, which {source} does not have{hint} (it has {known})"
    )
