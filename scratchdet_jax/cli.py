"""Command lines: ml_collections configs with overrides, and errors a person can read."""

import difflib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from scratchdet_jax import stopping
from scratchdet_jax.config.fields import flatten
from scratchdet_jax.errors import UserError, one_line


def run(main: Callable[[Sequence[str]], None], advice: str = "") -> None:
    """Runs `main(sys.argv)` as the whole of a process.

    A UserError becomes one sentence on stderr and exit status 1. Ctrl-C ends the process with
    status 130 wherever nothing is lost (see stopping.py).

    Args:
        main: takes the command line with the program's name.
        advice: what the user can do after Ctrl-C, such as "run the same command to resume".
    """
    stopping.listen().advice = advice
    quiet_libraries()
    try:
        main(sys.argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except stopping.Stopped as stopped:
        stopping.leave_process(stopped.code)


def define_process_flags() -> None:
    """Flags of a run of several processes; scratchdet_jax.parallel.processes reads them."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for a run of several.")
    flags.DEFINE_integer("num_processes", None, "How many processes are in the run.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
    flags.DEFINE_integer("join_seconds", None, "How long to wait for the others; default: 300.")


def quiet_libraries() -> None:
    """Keeps the libraries' chatter (absl, up to warnings) out of the way of our own."""
    logging.set_verbosity(logging.ERROR)
    logging.set_stderrthreshold(logging.ERROR)


def parse_config(
    argv: Sequence[str], recipe: ml_collections.ConfigDict | None = None
) -> ml_collections.ConfigDict:
    """Parses the command line; every mistake is a UserError.

    The other flags are afterwards in `absl.flags.FLAGS`. The recipe is loaded first and the
    overrides are checked against it, so that an unknown field is named with its near misses
    before anything is built.

    Args:
        argv: the command line with the program's name.
        recipe: what the overrides apply to; by default the recipe file that `--config` names.

    Returns:
        The config with its overrides, locked.
    """
    if {"--help", "-h"} & set(argv):
        print(f"{sys.modules['__main__'].__doc__}\n{flags.FLAGS.main_module_help()}")
        sys.exit(0)
    path, argv = _take_flag(argv, "config")
    if path is not None:
        recipe = load_recipe(path)
    elif recipe is None:
        raise UserError(f"no recipe named: add --config=FILE (there are {_known_recipes()})")
    fields = flatten(recipe)
    overrides = _overridden(argv)
    for name in overrides:
        if name not in fields:
            raise UserError(_unknown_field(name, fields))
    config = _parse_with_config(argv, recipe)
    for name in overrides:
        _check_elements(name, fields[name], flatten(config)[name])
    return config


def load_recipe(path: str) -> ml_collections.ConfigDict:
    """`get_config()` of a recipe file; `FILE.py:ARGUMENT` passes it a string."""
    file, separator, argument = path.partition(":")
    spec = importlib.util.spec_from_file_location("recipe", file)
    if spec is None or spec.loader is None or not Path(file).is_file():
        raise UserError(f"there is no recipe {file}: there are {_known_recipes()}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{file} is no recipe: it has no function get_config()")
    return module.get_config(argument) if separator else module.get_config()


def _known_recipes() -> str:
    files = Path("configs").rglob("*.py")
    return ", ".join(sorted(str(p) for p in files if p.stem not in ("__init__", "common")))


def _take_flag(argv: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """The value of `--name` and the command line without it."""
    value, rest, arguments = None, [], iter(argv)
    for argument in arguments:
        flag, separator, text = argument.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            value = text if separator else next(arguments, None)
        else:
            rest.append(argument)
    return value, rest


def _overridden(argv: Sequence[str]) -> list[str]:
    """Dotted names of the overridden fields."""
    names = (a.lstrip("-").partition("=")[0] for a in argv if a.startswith("-"))
    return [n.removeprefix("config.") for n in names if n.startswith("config.")]


def _parse_with_config(
    argv: Sequence[str], recipe: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
    holder = config_flags.DEFINE_config_dict(
        "config", recipe, flag_values=flags.FLAGS, sys_argv=list(argv)
    )
    parse_flags(argv)
    return holder.value.lock()


def parse_flags(argv: Sequence[str]) -> flags.FlagValues:
    """Parses the flags that are defined; every mistake is a UserError."""
    try:
        rest = flags.FLAGS(list(argv))
    except flags.Error as error:
        raise UserError(one_line(error)) from None
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: options are written --name=value")
    return flags.FLAGS


def _unknown_field(name: str, fields: dict[str, object]) -> str:
    leaf = name.rpartition(".")[2]
    close = difflib.get_close_matches(name, fields, n=3, cutoff=0.6)
    close += [f for f in fields if f.rpartition(".")[2] == leaf and f not in close]
    for match in difflib.get_close_matches(leaf, {f.rpartition(".")[2] for f in fields}, n=2):
        close += [f for f in fields if f.rpartition(".")[2] == match and f not in close]
    hint = f"; did you mean {' or '.join('config.' + c for c in close[:4])}?" if close else ""
    if any(f.startswith(name + ".") for f in fields):
        inside = ", ".join(f for f in fields if f.startswith(name + "."))
        hint = f": it is a group; set one of its fields ({inside})"
    return f"there is no field config.{name}{hint}"


def _check_elements(name: str, default: object, value: object) -> None:
    """Tuples parse as anything; their elements must be of the default's kind."""
    if not isinstance(default, tuple) or not default:
        return
    numbers = all(isinstance(x, (int, float)) for x in default)
    wanted = (int, float) if numbers else type(default[0])
    wrong = [x for x in value if not isinstance(x, wanted) or isinstance(x, bool)]
    if wrong:
        kind = "numbers" if numbers else f"values of type {type(default[0]).__name__}"
        raise UserError(f"config.{name} takes {kind} such as {default!r}, not {wrong[0]!r}")


def flag_value(argv: Sequence[str], name: str) -> str | None:
    """The value of `--name` before the flags are parsed (it decides which config is loaded)."""
    return _take_flag(argv, name)[0]
