"""Command lines: configs with overrides, and how every program ends."""

import argparse
import difflib
import importlib.util
import json
import logging as python_logging
import shlex
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from scratchdet_jax import stopping
from scratchdet_jax.config.fields import flatten
from scratchdet_jax.errors import FieldsError, UserError, one_line

_RATE = "the field is --config.optimizer.learning_rate=0.01"
_BATCH = "the field is --config.batch_size=4"
_STEPS = "the field is --config.num_steps=1000, the number of updates"
_EPOCHS = (
    "the field is --config.train_images=N, where N is the number of epochs times the number of "
    "training images"
)
_SIZE = "the field is --config.image_size=300"
# Flags of other programs, and what does the same here.
_FIELDS_OF_FLAGS = {
    **dict.fromkeys(("batch_size", "batch-size", "batch", "bs"), _BATCH),
    **dict.fromkeys(("epochs", "epoch", "num_epochs", "max_epochs"), _EPOCHS),
    **dict.fromkeys(("lr", "lr0", "learning_rate", "learning-rate"), _RATE),
    **dict.fromkeys(("steps", "num_steps", "max_steps", "iterations", "iters"), _STEPS),
    **dict.fromkeys(("image_size", "imgsz", "img_size", "img"), _SIZE),
    "extend": "the field is --config.extend=1.5x, for a run that was complete",
    "seed": "the field is --config.seed=0",
    "data": "the fields are --config.data.train and --config.data.eval, as NAME:SPLIT",
    "data_dir": "the field is --config.data.dir=FOLDER",
    "output": "the folder of the run is --workdir=FOLDER",
}


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> None:
    """Runs a program: `main(argv)`, where argv[0] is how the user called it.

    Every program ends here, with one of these exit statuses: 0; 1 after a UserError, which becomes
    one sentence on stderr; 2 from argparse; 75 after SIGTERM; 130 after Ctrl-C. `--help` prints the
    docstring and the flags of the module of `main` if that module defines absl flags; otherwise
    `main` answers it.

    Args:
        main: a program.
        argv: its command line; by default that of this process, which then listens for Ctrl-C
            (see stopping.py).
    """
    if argv is None:
        stopping.listen()
    argv = [_program(), *sys.argv[1:]] if argv is None else list(argv)
    quiet_libraries()
    hide_libtpu()
    try:
        if {"--help", "-h"} & set(argv) and flags.FLAGS.get_key_flags_for_module(main.__module__):
            _print_help(main.__module__, argv[0])
        else:
            main(argv)
    except UserError as error:
        if isinstance(error, FieldsError) and "config" in flags.FLAGS:
            print(f"error: {error.text(_without_fields(argv, error.fields))}", file=sys.stderr)
        else:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except stopping.Stopped as stopped:
        stopping.leave_process(stopped.code)
    except KeyboardInterrupt:  # in a program that does not listen
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(stopping.INTERRUPTED)


def _without_fields(argv: Sequence[str], fields: Iterable[str]) -> str:
    """The command as the user can type it again, without the overrides of some fields."""
    for name in fields:
        _, argv = _take_flag(argv, f"config.{name}")
    return shlex.join(
        [*(["python"] if argv[0].endswith(".py") else []), *argv[0].split(), *argv[1:]]
    )


def _program() -> str:
    """How the user called this program: "train.py", or "python -m PACKAGE.MODULE"."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is None:
        return Path(sys.argv[0]).name
    return f"python -m {module.name.removesuffix('.__main__')}"


def _print_help(module: str, program: str) -> None:
    _, _, listed = flags.FLAGS.module_help(module).strip().partition("\n")  # names the module
    print(f"{sys.modules[module].__doc__}\n\n{program}:\n{listed}")


def define_process_flags() -> None:
    """Flags of a run with several processes; scratchdet_jax.parallel.processes reads them."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for several processes.")
    flags.DEFINE_integer("num_processes", None, "Number of processes in the run.")
    flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")
    flags.DEFINE_integer("join_seconds", None, "How long to wait for the others; default: 300.")


def quiet_libraries() -> None:
    """Silences what libraries log about failures that reach the program as exceptions, too.

    A full disk makes Orbax log every array that it cannot write, from several threads and event
    loops, in thousands of lines. The program reports the same failure in one sentence.
    """
    logging.set_verbosity(logging.FATAL)
    logging.set_stderrthreshold(logging.FATAL)
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.excepthook = _except_closed_loops(sys.excepthook)
    unraisable = sys.unraisablehook
    sys.unraisablehook = lambda args: None if _is_closed_loop(args.exc_value) else unraisable(args)


def hide_libtpu() -> None:
    """Hides the TPUs' library from JAX on a machine without TPUs, where the tests need it.

    JAX would load it at every start to look for TPUs.
    """
    google = "0x1ae0"
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    if not any(vendor.read_text().strip() == google for vendor in vendors):
        # None, which the annotation of sys.modules does not allow: an import then fails.
        sys.modules.setdefault("libtpu", None)  # type: ignore[arg-type]


def count(text: str) -> int:
    """A whole number from 0 upwards, as a type of argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a non-negative integer")
    return int(text)


def _except_closed_loops(hook: Callable[..., None]) -> Callable[..., None]:
    """`hook`, but for the answers of TensorStore to an event loop that a failure has closed."""

    def report(kind: type, value: BaseException, traceback: Any) -> None:
        if not _is_closed_loop(value):
            hook(kind, value, traceback)

    return report


def _is_closed_loop(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


def parse_config(
    argv: Sequence[str], recipe: ml_collections.ConfigDict | None = None
) -> ml_collections.ConfigDict:
    """Parses the command line; every mistake is a UserError.

    The values of the other flags are then in `absl.flags.FLAGS`. The recipe is loaded first and the
    overrides are checked against it, so that an unknown field is reported with its near misses
    before anything is built.

    Args:
        argv: the command line with the program's name.
        recipe: the config that the overrides apply to, unless `--config` names a recipe file.

    Returns:
        The config with its overrides, locked.
    """
    path, argv = _take_flag(argv, "config")
    if path is not None:
        recipe = load_recipe(path)
    elif recipe is None:
        raise UserError(f"no recipe given: add --config=FILE ({_known_recipes()})")
    fields = flatten(recipe)
    overrides = _overridden(argv)
    for name in overrides:
        if name not in fields:
            raise UserError(_unknown_field(name, fields))
    repeated = {n for n in overrides if isinstance(fields[n], tuple) and overrides.count(n) > 1}
    config = _parse_with_config(_only_last(argv, repeated), recipe)
    for name in overrides:
        _check_elements(name, fields[name], flatten(config)[name])
    return config


def load_recipe(path: str) -> ml_collections.ConfigDict:
    """`get_config()` of a recipe; `RECIPE:ARGUMENT` passes it a string.

    The recipe is a file or a name: voc300 is ./configs/voc300.py or, without one, the installed
    recipe.
    """
    name, separator, argument = path.partition(":")
    file = _recipe_file(name)
    spec = importlib.util.spec_from_file_location("recipe", file)
    if spec is None or spec.loader is None or not Path(file).is_file():
        raise UserError(f"there is no recipe {file} ({_known_recipes()})")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{file} is not a recipe: it has no function get_config()")
    return module.get_config(argument) if separator else module.get_config()


def _recipe_file(name: str) -> str:
    """The file of a recipe: `name` itself, or in ./configs, or in the installed configs."""
    if Path(name).is_file():
        return name
    relative = Path(name).with_suffix(".py")
    if relative.parts[:1] == ("configs",):
        relative = relative.relative_to("configs")
    folders = (Path("configs"), _installed_recipes())
    return next((str(f / relative) for f in folders if (f / relative).is_file()), name)


def _installed_recipes() -> Path:
    """Where `pip install` puts configs/: data files, because the package never imports them."""
    return Path(sysconfig.get_path("data")) / "share" / "scratchdet_jax" / "configs"


def _known_recipes() -> str:
    for folder, where in ((Path("configs"), "here"), (_installed_recipes(), "installed")):
        files = [p for p in folder.rglob("*.py") if p.stem not in ("__init__", "common")]
        names = sorted(str(p) if where == "here" else _recipe_name(p, folder) for p in files)
        if names:
            return f"recipes {where}: {', '.join(names)}"
    return "no recipes in ./configs"


def _recipe_name(file: Path, folder: Path) -> str:
    return file.relative_to(folder).with_suffix("").as_posix()


def flag_value(argv: Sequence[str], name: str) -> str | None:
    """The value of `--name` before the flags are parsed: some decide what is loaded first."""
    return _take_flag(argv, name)[0]


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


def _only_last(argv: Sequence[str], names: Iterable[str]) -> list[str]:
    """The command line with the last override of each field; ml_collections would join tuples."""
    argv = list(argv)
    for name in sorted(names):
        value, rest = _take_flag(argv, f"config.{name}")
        if value is not None:  # otherwise the last one lacks its value, which is reported
            argv = [*rest, f"--config.{name}={value}"]
    return argv


def _parse_with_config(
    argv: Sequence[str], recipe: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
    holder = config_flags.DEFINE_config_dict(
        "config", recipe, flag_values=flags.FLAGS, sys_argv=list(argv)
    )
    parse_flags(argv)
    return holder.value.lock()


def parse_flags(argv: Sequence[str]) -> flags.FlagValues:
    """Parses the absl flags; every mistake is a UserError."""
    try:
        rest = flags.FLAGS(list(argv))
    except flags.UnrecognizedFlagError as error:
        if error.flagname in _FIELDS_OF_FLAGS:
            raise UserError(
                f"there is no flag --{error.flagname}: {_FIELDS_OF_FLAGS[error.flagname]}"
            ) from None
        raise UserError(one_line(error)) from None
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


def write_json(path: str | Path, record: Any, flag: str) -> None:
    """Writes JSON to a file that the user named with `flag`; creates its folder.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{flag} {path} cannot be written ({error.strerror}): choose another file"
        ) from None
