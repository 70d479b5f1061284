"""The config, as far as it differs from its recipe, and the versions."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from scratchdet_jax.config import defaults
from scratchdet_jax.config.recipes import load_recipe
from scratchdet_jax.reports.page.tables import Cell
from scratchdet_jax.reports.report.study import RunStudy
from scratchdet_jax.run.checkpoints import Checkpoints

Figures = Mapping[str, Any]


def measure(study: RunStudy) -> dict[str, Any]:
    """Reads config and versions of the checkpoint.

    Returns:
        Where the run is and on what it was scored; `basis`, what the config is compared with, as
        part of a sentence; `differences`: by field, the value there and in the run, None for a
        field that is not there; every field of the `config`; the `versions` of what wrote the
        checkpoint, empty if it does not say.
    """
    run = study.run
    config = defaults.flatten(run.info.config)
    recipe, basis = find_recipe(run.info.config.name)
    before = defaults.flatten(recipe)
    checkpoints = Checkpoints(run.workdir, read_only=True)
    made_with = checkpoints.versions(run.step)
    checkpoints.close()
    return {
        "workdir": str(run.workdir),
        "step": run.step,
        "data": study.source.spec,
        "images": len(study.source),
        "class_names": study.class_names,
        "basis": basis,
        "differences": {
            name: (before.get(name), value)
            for name, value in config.items()
            if before.get(name) != value
        },
        "config": config,
        "versions": made_with,
    }


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


def summary(setup: Figures) -> str:
    """Returns how many fields differ, and from what."""
    count, basis = len(setup["differences"]), setup["basis"]
    if not count:
        return f"no field differs from {basis}"
    return f"{count} {'field differs' if count == 1 else 'fields differ'} from {basis}"


def difference_rows(setup: Figures) -> list[list[str]]:
    """Returns the fields in which the run differs from its recipe."""
    recipe = setup["basis"].split()[1].rstrip("s,")
    differences = setup["differences"].items()
    rows = [["field", recipe, "run"], *([field, *map(_text, both)] for field, both in differences)]
    return [[field, Cell(there, "text"), Cell(here, "text")] for field, there, here in rows]


def config_rows(runs: Mapping[str, Figures]) -> list[list[str]]:
    """Returns the fields in which the runs differ."""
    head, *rows = compared({name: setup["config"] for name, setup in runs.items()})
    return [head, *(row for row in rows if len(set(row[1:])) > 1)]


def version_rows(runs: Mapping[str, Figures]) -> list[list[str]]:
    """Returns the versions that wrote the checkpoints."""
    return compared({name: setup["versions"] for name, setup in runs.items()})


def compared(values: Mapping[str, Figures]) -> list[list[str]]:
    """Returns a row for each key, a column for each run."""
    keys = dict.fromkeys(key for one in values.values() for key in one)
    rows = [["", *values], *([key, *(_text(v.get(key)) for v in values.values())] for key in keys)]
    return [[key, *(Cell(text, "text") for text in texts)] for key, *texts in rows]


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value) or "(empty)"
