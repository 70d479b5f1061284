"""Command-line tools for single-shot detectors trained from random initialisation.

scratchdet COMMAND [options], or python -m scratchdet_jax.tools COMMAND [options]
"""

import ast
import difflib
import importlib
import importlib.util
from collections.abc import Sequence
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec

from scratchdet_jax import cli
from scratchdet_jax.errors import UserError

# Modules of this package, in the order of work. Each has `main(argv)`.
COMMANDS = (
    "train",
    "eval",
    "predict",
    "export",
    "prepare",
    "doctor",
    "score",
    "report",
    "plot",
    "summary",
    "forecast",
    "landscape",
    "import_torch",
    "replay",
)


def main(argv: Sequence[str]) -> None:
    """Runs the command that argv[1] names; lists the commands if there is none."""
    program, (name, *rest) = argv[0], argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(_help(program))
        return
    if name not in COMMANDS:
        close = " or ".join(difflib.get_close_matches(name, COMMANDS))
        hint = f"did you mean {close}?" if close else f"the commands are {', '.join(COMMANDS)}"
        raise UserError(f"there is no command {name!r}: {hint}")
    command = importlib.import_module(_module(name).name)
    cli.run(command.main, [f"{program} {name}", *rest])


def title(name: str) -> str:
    """The first line of a command's docstring, without importing the command."""
    module = _module(name)
    loader = module.loader
    source = loader.get_source(module.name) if isinstance(loader, InspectLoader) else None
    return (ast.get_docstring(ast.parse(source or "")) or "").partition("\n")[0]


def _module(name: str) -> ModuleSpec:
    """The module of a command: NAME, or NAME.__main__ if that is a package."""
    module = importlib.util.find_spec(f"{__package__}.{name}")
    if module is not None and module.submodule_search_locations is not None:
        module = importlib.util.find_spec(f"{module.name}.__main__")
    if module is None:
        raise ModuleNotFoundError(f"{__package__}.{name}")
    return module


def _help(program: str) -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            f"usage: {program} COMMAND [options]",
            "",
            "commands:",
            *(f"  {name:<{width}}  {title(name)}" for name in COMMANDS),
            "",
            f"{program} COMMAND --help describes a command.",
        ]
    )


if __name__ == "__main__":
    cli.run(main)
