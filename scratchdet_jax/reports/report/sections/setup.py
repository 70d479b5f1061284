"""The config, as far as it differs from its recipe, and the versions."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections

from scratchdet_jax.config import defaults
from scratchdet_jax.config.defaults import flatten
from scratchdet_jax.config.recipes import load_recipe
from scratchdet_jax.reports.page.tables import Cell, Wrapped
from scratchdet_jax.reports.report.study import RunStudy
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
    def measure(cls, study: RunStudy) -> "Setup":
        """Reads config and versions of the checkpoint."""
        run = study.run
        config = flatten(run.info.config)
        recipe, basis = find_recipe(run.info.config.name)
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
    def rows(runs: Mapping[str, "Setup"]) -> list[list[Cell]]:
        """Returns the fields in which the runs differ."""
        return _compared({name: setup.config for name, setup in runs.items()})

    @staticmethod
    def version_rows(runs: Mapping[str, "Setup"]) -> list[list[Cell]]:
        """Returns the versions that wrote the checkpoints."""
        return _compared({name: setup.versions for name, setup in runs.items()}, every=True)

    def difference_rows(self) -> list[list[Cell]]:
        """Returns the fields in which the run differs from its recipe."""
        rows: list[list[Cell]] = [
            [field, Wrapped(_text(there)), Wrapped(_text(here))]
            for field, (there, here) in self.differences.items()
        ]
        recipe = self.basis.split()[1].rstrip("s,")
        return [["field", Wrapped(recipe), Wrapped("run")], *rows]

    def summary(self) -> str:
        """Returns how many fields differ, and from what."""
        count = len(self.differences)
        if not count:
            return f"no field differs from {self.basis}"
        return f"{count} {'field differs' if count == 1 else 'fields differ'} from {self.basis}"


def find_recipe(name: str) -> tuple[ml_collections.ConfigDict, str]:
    """Returns the recipe of that name, or the defaults, and what it is in words."""
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
    """Returns a row for each key, a column for each run; only keys that differ unless `every`."""
    keys = dict.fromkeys(key for one in values.values() for key in one)
    rows: list[list[Cell]] = [
        [key, *(Wrapped(_text(one.get(key, "–"))) for one in values.values())] for key in keys
    ]
    return [["", *map(Wrapped, values)], *(row for row in rows if every or len(set(row[1:])) > 1)]


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value) or "(empty)"
