"""The input of a data set, and whether a prepared one was made from it."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scratchdet_jax.datasets.checks import Journal
from scratchdet_jax.datasets.objects import Contents
from scratchdet_jax.datasets.report import PrepareReport
from scratchdet_jax.datasets.untrusted import printable
from scratchdet_jax.errors import UserError, one_line

INVENTORY = "files.json"  # beside report.json, the version of each input file
_FILES_NAMED = 3  # of the files added, removed and changed, each


class FolderInput(NamedTuple):
    """A folder or annotation file of the user, listed but not yet checked.

    Attributes:
        source: its path, for messages.
        fingerprint: hash of its contents and of the options with which it is read.
        scan: reads and checks it.
        inventory: lists its files by name, each with its size or digest.
    """

    source: str
    fingerprint: str
    scan: Callable[[Journal], Contents]
    inventory: Callable[[], Mapping[str, str]]


def stored_report(directory: Path, given: FolderInput) -> PrepareReport:
    """Reads the report of an existing data set.

    Raises:
        UserError: there is none, or the set was prepared from another input or with other options.
    """
    try:
        report = PrepareReport.from_json((directory / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{directory} has no readable report.json ({one_line(error)}): delete the directory, "
            f"or add --force, to prepare {given.source}"
        ) from None
    if report.fingerprint != given.fingerprint:
        raise UserError(
            f"{report.name} in {directory} was prepared from {report.source}, whose "
            f"{_difference(directory, given)}: add --force (of the tool prepare) to prepare it "
            "again in its place, delete that directory, or choose another name"
        )
    return report


def _difference(directory: Path, given: FolderInput) -> str:
    """Says how the input differs from the one of an existing data set, in words."""
    try:
        old = json.loads((directory / INVENTORY).read_text(encoding="utf-8"))
        new = dict(given.inventory())
        parts = (
            ("added", sorted(new.keys() - old.keys())),
            ("removed", sorted(old.keys() - new.keys())),
            ("changed", sorted(k for k in old.keys() & new.keys() if old[k] != new[k])),
        )
    except (OSError, ValueError, AttributeError):
        return "files, classes or splits differ from those given now"
    found = [_named(names, what) for what, names in parts if names]
    if not found:
        return "files are the same, but not the options (classes, splits, division)"
    return f"files differ now: {'; '.join(found)}"


def _named(names: Sequence[str], what: str) -> str:
    more = f" and {len(names) - _FILES_NAMED:,} more" if len(names) > _FILES_NAMED else ""
    listed = ", ".join(printable(name) for name in names[:_FILES_NAMED])
    return f"{len(names):,} {what} ({listed}{more})"
