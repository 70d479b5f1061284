"""The config, as far as it differs from its recipe, and the versions."""

import html
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ml_collections

from scratchdet_jax.config import defaults
from scratchdet_jax.config.fields import flatten
from scratchdet_jax.config.recipes import load_recipe
from scratchdet_jax.reports.page.layout import Cell, Wrapped, details, html_table, soft, text_table
from scratchdet_jax.reports.report.study import Study
from scratchdet_jax.run.checkpoints import Checkpoints


class Setup(NamedTuple):
    """How a run was trained.

    Attributes:
        workdir: its folder.
        step: of the checkpoint.
        data: the split on which it was scored.
        images: of that split.
        class_names: label i is class_names[i − 1].
        basis: what the config is compared with, as part of a sentence.
        differences: by field, the value there and in the run; None for a field that is not there.
        config: every field.
        versions: of what wrote the checkpoint; empty if it does not say.
    """

    workdir: str
    step: int
    data: str
    images: int
    class_names: tuple[str, ...]
    basis: str
    differences: dict[str, tuple[Any, Any]]
    config: dict[str, Any]
    versions: dict[str, str]

    @classmethod
    def measure(cls, study: Study) -> "Setup":
        """Reads config and versions of the checkpoint."""
        run = study.run
        config = flatten(run.info.config)
        recipe, basis = _recipe(run.info.config.name)
        before = flatten(recipe)
        checkpoints = Checkpoints(run.workdir, read_only=True)
        made_with = checkpoints.versions(run.step)
        checkpoints.close()
        return cls(
            str(run.workdir),
            run.step,
            study.source.spec,
            len(study.source),
            tuple(study.class_names),
            basis,
            {
                name: (before.get(name), value)
                for name, value in config.items()
                if before.get(name) != value
            },
            config,
            made_with,
        )

    @staticmethod
    def to_text(runs: Mapping[str, "Setup"]) -> Iterator[str]:
        """The fields that differ."""
        yield "\nCONFIG"
        for name, setup in runs.items():
            where = f"{name}: " if len(runs) > 1 else ""
            yield f"  {where}{setup._counted()}"
            if len(runs) == 1:
                yield from (f"    {f}: {_text(a)} -> {_text(b)}" for f, (a, b) in _rows(setup))
        if len(runs) > 1:
            rows = _compared({name: setup.config for name, setup in runs.items()})
            same = len(rows) == 1
            yield f"  {'the runs have the same config' if same else 'the runs differ in'}"
            yield from [] if same else text_table(rows)

    @staticmethod
    def to_html(runs: Mapping[str, "Setup"]) -> Iterator[str]:
        """Differences between the runs, of each run from its recipe, and versions."""
        if len(runs) > 1:
            rows = _compared({name: setup.config for name, setup in runs.items()})
            if len(rows) > 1:
                yield "<h3>Fields in which the runs differ</h3>"
                yield html_table(_wrapped(rows))
            else:
                yield soft("The runs have the same config.")
        for name, setup in runs.items():
            table = ""
            if setup.differences:
                head = ["field", setup.basis.split()[1].rstrip("s,"), "run"]
                rows = [[f, _text(a), _text(b)] for f, (a, b) in _rows(setup)]
                table = html_table(_wrapped([head, *rows]))
            if len(runs) == 1:
                yield f"<p>{html.escape(setup._counted().capitalize())}.</p>{table}"
            else:
                yield details(f"{name}: {setup._counted()}", table)
        yield "<h3>Versions</h3>"
        silent = [name for name, setup in runs.items() if not setup.versions]
        if len(silent) < len(runs):
            yield html_table(_compared({n: s.versions for n, s in runs.items()}, every=True))
        if silent:
            which = f" of {' and '.join(silent)}" if len(runs) > 1 else ""
            text = f"The checkpoint{which} does not say its versions: an older version wrote it."
            yield soft(html.escape(text))

    def _counted(self) -> str:
        count = len(self.differences)
        if not count:
            return f"no field differs from {self.basis}"
        return f"{count} {'field differs' if count == 1 else 'fields differ'} from {self.basis}"


def _rows(setup: Setup) -> list[tuple[str, tuple[Any, Any]]]:
    return list(setup.differences.items())


def _recipe(name: str) -> tuple[ml_collections.ConfigDict, str]:
    """The recipe of that name, or the defaults, and what it is in words."""
    places = [i for i, letter in enumerate(name) if letter == "_"]
    tries = [name]
    for mark in (":", "/"):  # a row of a table, a folder
        tries += [f"{name[:i]}{mark}{name[i + 1 :]}" for i in reversed(places)]
    for text in tries:
        try:
            recipe = load_recipe(text)
            if recipe.name == name:
                return defaults.with_defaults(recipe), f"the recipe {text}"
        except Exception:  # a recipe is a user's program; another one may bear the name
            continue
    return defaults.get_config(), f"the defaults, as no recipe {name} is in ./configs or installed"


def _compared(values: Mapping[str, Mapping[str, Any]], every: bool = False) -> list[list[Cell]]:
    """A row for each key, a column for each run; without `every` only the keys that differ."""
    keys = dict.fromkeys(key for one in values.values() for key in one)
    rows = [[key, *(_text(one.get(key, "–")) for one in values.values())] for key in keys]
    return [["", *values], *(row for row in rows if every or len(set(row[1:])) > 1)]


def _wrapped(rows: list[list[str]]) -> list[list[Cell]]:
    return [[row[0], *map(Wrapped, row[1:])] for row in rows]


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value) or "(empty)"
