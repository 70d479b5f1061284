"""Command lines: how every program is run, and how flags and a config's overrides are parsed.

A command that takes a config has `define_flags()`, which returns its other flags (absl's); each
other command has `parser(program)`, which returns its parser (argparse's). Both are called when the
command runs, so that importing it has no effect.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from scratchdet_jax import libraries, stopping
from scratchdet_jax.config.defaults import flatten
from scratchdet_jax.config.recipes import known_recipes, load_recipe
from scratchdet_jax.errors import UserError, one_line


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> None:
    """Runs a program: `main(argv)`, where argv[0] is how the user called it.

    Every program ends here, with one of these exit statuses: 0; 1 after a UserError, which becomes
    one sentence on stderr; 2 from argparse; 75 after SIGTERM; 130 after Ctrl-C. `--help` prints the
    docstring of the module of `main` and the flags of its `define_flags`; without that function,
    `main` answers it.

    Args:
        main: a program.
        argv: its command line; by default that of this process, which then listens for Ctrl-C
            (see stopping.py) and imports from the current directory, too.
    """
    if argv is None:
        stopping.listen()
        sys.path.append(os.getcwd())
    argv = [_program(), *sys.argv[1:]] if argv is None else list(argv)
    libraries.quiet()
    libraries.hide_libtpu()
    module = sys.modules[main.__module__]
    define_flags = getattr(module, "define_flags", None)
    try:
        if {"--help", "-h"} & set(argv) and define_flags:
            print(f"{module.__doc__}\n\n{argv[0]}:\n{_listed(define_flags())}")
        else:
            main(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
    except stopping.Stopped as stopped:
        stopping.leave_process(stopped.code)
    except KeyboardInterrupt:  # in a program that does not listen
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(stopping.INTERRUPTED)


def _program() -> str:
    """Returns how the user called this program: "train.py", or "python -m PACKAGE.MODULE"."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is None:
        return Path(sys.argv[0]).name
    return f"python -m {module.name.removesuffix('.__main__')}"


def _listed(values: flags.FlagValues) -> str:
    """Returns the flags and what they are for, one below the other."""
    lines = values.get_help(include_special_flags=False).splitlines()
    return "\n".join(line for line in lines if line.startswith(" "))  # others name modules


PROCESS_FLAGS = {
    "coordinator": "HOST:PORT of process 0, for several processes.",
    "num_processes": "Number of processes in the run.",
    "process_id": "Index of this process, from 0.",
    "join_seconds": "How long to wait for the others; default: 300.",
}


def define_process_flags(values: flags.FlagValues) -> None:
    """Adds the flags of a run with several processes."""
    for name, text in PROCESS_FLAGS.items():
        define = flags.DEFINE_string if name == "coordinator" else flags.DEFINE_integer
        define(name, None, text, flag_values=values)


def process_settings(values: flags.FlagValues) -> dict[str, Any]:
    """Returns the values of the flags of `define_process_flags`, for `parallel.processes.start`."""
    return {name: values[name].value for name in PROCESS_FLAGS}


def whole_number(least: int) -> Callable[[str], int]:
    """Returns a type for argparse: a whole number from `least` upwards."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number from {least} upwards")
        return int(text)

    return parse


def parse_config(
    argv: Sequence[str], values: flags.FlagValues, recipe: ml_collections.ConfigDict | None = None
) -> ml_collections.ConfigDict:
    """Parses the command line; every mistake is a UserError.

    The recipe is loaded first and the overrides are checked against it, so that an unknown field is
    reported with its near misses before anything is built.

    Args:
        argv: the command line with the program's name.
        values: the other flags of the program, which get their values here.
        recipe: the config that the overrides apply to, unless `--config` names a recipe file.

    Returns:
        The config with its overrides, locked.
    """
    path, argv = _take_flag(argv, "config")
    if path is not None:
        recipe = load_recipe(path)
    elif recipe is None:
        raise UserError(f"no recipe given: add --config=FILE ({known_recipes()})")
    fields = flatten(recipe)
    overrides = _overridden(argv)
    for name in overrides:
        if name not in fields:
            raise UserError(_unknown_field(name, fields))
    repeated = {n for n in overrides if isinstance(fields[n], tuple) and overrides.count(n) > 1}
    argv = _only_last(argv, repeated)
    holder = config_flags.DEFINE_config_dict("config", recipe, flag_values=values, sys_argv=argv)
    parse_flags(argv, values, fields)
    config = holder.value.lock()
    for name in overrides:
        _check_elements(name, fields[name], flatten(config)[name])
    return config


def parse_flags(
    argv: Sequence[str], values: flags.FlagValues, fields: Iterable[str] = ()
) -> flags.FlagValues:
    """Parses absl flags; every mistake is a UserError, which names a field of the same name."""
    try:
        rest = values(list(argv))
    except flags.UnrecognizedFlagError as error:
        name = error.flagname.replace("-", "_")
        near = [f"--config.{field}" for field in fields if field.rpartition(".")[2] == name]
        hint = f"; the config has {' and '.join(near)}" if near else ""
        raise UserError(f"{one_line(error)}{hint}") from None
    except flags.Error as error:
        raise UserError(one_line(error)) from None
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: options are written --name=value")
    return values


def parse_early(argv: Sequence[str], values: flags.FlagValues) -> flags.FlagValues:
    """Parses the flags that decide which config is loaded, and leaves the others for later."""
    values.set_gnu_getopt()
    try:
        values(list(argv), known_only=True)
    except flags.Error as error:
        raise UserError(one_line(error)) from None
    return values


def _take_flag(argv: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """Returns the value of `--name` and the command line without it."""
    value, rest, arguments = None, [], iter(argv)
    for argument in arguments:
        flag, separator, text = argument.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            value = text if separator else next(arguments, None)
        else:
            rest.append(argument)
    return value, rest


def _overridden(argv: Sequence[str]) -> list[str]:
    """Returns the dotted names of the overridden fields."""
    names = (a.lstrip("-").partition("=")[0] for a in argv if a.startswith("-"))
    return [n.removeprefix("config.") for n in names if n.startswith("config.")]


def _only_last(argv: Sequence[str], names: Iterable[str]) -> list[str]:
    """Keeps only the last override of each field in `names`; ml_collections would join tuples."""
    argv = list(argv)
    for name in sorted(names):
        value, rest = _take_flag(argv, f"config.{name}")
        if value is not None:  # otherwise the last one lacks its value, which is reported
            argv = [*rest, f"--config.{name}={value}"]
    return argv


def _unknown_field(name: str, fields: Iterable[str]) -> str:
    if inside := [field for field in fields if field.startswith(f"{name}.")]:
        return f"config.{name}: it is a group; set one of its fields ({', '.join(inside)})"
    leaves = {field.rpartition(".")[2] for field in fields}
    close = difflib.get_close_matches(name.rpartition(".")[2], leaves, n=2)
    near = [f"config.{field}" for field in fields if field.rpartition(".")[2] in close]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"there is no field config.{name}{hint}"


def _check_elements(name: str, default: object, value: Any) -> None:
    """Checks that the elements of a tuple, which parse as anything, are like the default's."""
    if not isinstance(default, tuple) or not default:
        return
    numbers = all(isinstance(x, (int, float)) for x in default)
    wanted = (int, float) if numbers else type(default[0])
    wrong = [x for x in value if not isinstance(x, wanted) or isinstance(x, bool)]
    if wrong:
        kind = "numbers" if numbers else f"values of type {type(default[0]).__name__}"
        raise UserError(f"config.{name} takes {kind}, such as {default!r}, not {wrong[0]!r}")
