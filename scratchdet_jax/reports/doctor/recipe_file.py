"""The doctor's advice on anchors as a recipe (`--write_anchors=FILE.py`)."""

from pathlib import Path

import ml_collections

from scratchdet_jax.config.defaults import flatten
from scratchdet_jax.errors import UserError
from scratchdet_jax.files import check_replaceable, write_text_atomically
from scratchdet_jax.reports.doctor.sections.unreached import WhatIf
from scratchdet_jax.reports.page.wording import percent


def check_recipe(path: Path, overwrite: bool) -> None:
    """Refuses a file that is no recipe or that may not be replaced.

    Recipes have no mark, because they are meant to be edited.
    """
    if path.suffix != ".py":
        raise UserError(f"--write_anchors={path} is no recipe: give a file FILE.py")
    check_replaceable(f"--write_anchors={path}", path, "", overwrite)


def write_recipe(
    path: Path,
    advice: WhatIf,
    *,
    dataset: str,
    recipe: str,
    original: ml_collections.ConfigDict,
    config: ml_collections.ConfigDict,
) -> None:
    """Writes a recipe that starts from another one and sets its anchors.

    Args:
        path: the file; its name becomes the name of the recipe.
        advice: the anchor sizes.
        dataset: the data set that they fit.
        recipe: the recipe that was examined; "" for the defaults.
        original: its config.
        config: the same with the overrides of the command line, which the new recipe keeps.

    Raises:
        UserError: the file cannot be written.
    """
    fields: dict[str, object] = {"name": path.stem}
    before = flatten(original)
    fields |= {
        name: value
        for name, value in flatten(config).items()
        if value != before[name] and name != "name"
    }
    fields |= {"anchors.min_percent": advice.min_percent, "anchors.max_percent": advice.max_percent}
    load = f"load_recipe({recipe!r})" if recipe else "defaults.get_config()"
    module = "config.recipes import load_recipe" if recipe else "config import defaults"
    settings = "".join(f"    config.{name} = {value!r}\n" for name, value in fields.items())
    text = (
        f'"""Anchor sizes for {_plain(dataset)}, as the doctor advised: '
        f"{percent(advice.reached)} of the boxes reach an anchor.\n\n"
        f'python train.py --config={_plain(str(path))}\n"""\n\n'
        f"import ml_collections\n\nfrom scratchdet_jax.{module}\n\n\n"
        "def get_config() -> ml_collections.ConfigDict:\n"
        f'    """{_plain(recipe) or "The defaults"}, with other anchors."""\n'
        f"    config = {load}\n{settings}    return config\n"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, text)
    except OSError as error:
        raise UserError(
            f"--write_anchors={path} cannot be written ({error.strerror}): choose another path"
        ) from None


def _plain(text: str) -> str:
    """Returns a text that cannot end the docstring that it is in."""
    return text.replace("\\", "/").replace('"', "'")
