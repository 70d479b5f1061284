"""Recipes: Python files with `get_config()`, by path or by name."""

import importlib.util
import sysconfig
from pathlib import Path

import ml_collections

from scratchdet_jax.errors import UserError
from scratchdet_jax.paths import local_path


def load_recipe(path: str) -> ml_collections.ConfigDict:
    """Returns `get_config()` of a recipe; `RECIPE:ARGUMENT` passes it a string.

    The recipe is a file or a name: voc300 is ./configs/voc300.py or, without one, the installed
    recipe.
    """
    name, separator, argument = path.partition(":")
    file = _recipe_file(name)
    spec = importlib.util.spec_from_file_location("recipe", file)
    if spec is None or spec.loader is None or not Path(file).is_file():
        raise UserError(f"there is no recipe {file} ({known_recipes()})")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{file} is not a recipe: it has no function get_config()")
    return module.get_config(argument) if separator else module.get_config()


def _recipe_file(name: str) -> str:
    """Returns the file of a recipe: `name` itself, or in ./configs, or in the installed configs."""
    if local_path(name).is_file():
        return str(local_path(name))
    relative = Path(name).with_suffix(".py")
    if relative.parts[:1] == ("configs",):
        relative = relative.relative_to("configs")
    folders = (Path("configs"), _installed_recipes())
    return next((str(f / relative) for f in folders if (f / relative).is_file()), name)


def _installed_recipes() -> Path:
    """Returns where `pip install` puts configs/, as data files: the package never imports them.

    An editable installation uses those of the repository.
    """
    repository = Path(__file__).parents[2]
    if (repository / "pyproject.toml").is_file():
        return repository / "configs"
    return Path(sysconfig.get_path("data")) / "share" / "scratchdet_jax" / "configs"


def known_recipes() -> str:
    """Lists the recipes that can be named, for messages."""
    for folder, where in ((Path("configs"), "here"), (_installed_recipes(), "installed")):
        files = [p for p in folder.rglob("*.py") if p.stem not in ("__init__", "common")]
        names = sorted(
            str(p if where == "here" else p.relative_to(folder).with_suffix("")) for p in files
        )
        if names:
            return f"recipes {where}: {', '.join(names)}"
    return "no recipes in ./configs"
