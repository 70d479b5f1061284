"""Every program answers --help, and every documented command is one that its program takes.

Each command line is parsed by the program's own parser, and its config is validated as train.py
does before it opens data. What takes a second or so is run. The commands that train are run by the
slow tests of the pages and of docs/journey.sh.
"""

import argparse
import importlib
import inspect
import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
from absl import flags

from scratchdet_jax import cli
from scratchdet_jax.config import defaults
from scratchdet_jax.config.recipes import load_recipe
from scratchdet_jax.config.validation import validate
from scratchdet_jax.errors import UserError
from scratchdet_jax.models import ssd
from scratchdet_jax.tools.__main__ import COMMANDS
from tests import documented, run_records
from tests.command import exit_status
from tests.faults import campaign, signals
from tests.models.shapes import feature_shapes
from tests.own_photos import write_photos

ROOT = Path(__file__).parents[1]
TOOLS = "scratchdet_jax.tools"
ELSEWHERE = "benchmarks.peers.train_"  # scripts for an environment of their own, with PyTorch
PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_]*(\.\w+)?|.*….*")
NEEDED = {  # flags without which a program of absl only says that they are missing
    "scratchdet_jax.tools.eval": ["workdir"],
    "scratchdet_jax.tools.import_torch": ["checkpoint", "workdir"],
    "scratchdet_jax.tools.forecast": ["device"],
    "benchmarks.scaling": ["collectives"],
}


def programs():
    """Module names of everything in benchmarks/, experiments/ and tools/ for `python -m`."""
    folders = ("benchmarks", "experiments", "scratchdet_jax/tools")
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [
        name.removesuffix(".__main__")
        for name, path in zip(names, paths, strict=True)
        if '__name__ == "__main__"' in path.read_text() and not name.startswith(ELSEWHERE)
    ]


def program_module(name):
    """The module whose `main` is the program `python -m NAME`."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError:
        raise UserError(f"there is no module {name}") from None
    return module if hasattr(module, "main") else importlib.import_module(f"{name}.__main__")


def test_programs_are_found():
    found = {"benchmarks.train_step", "experiments.thesis", f"{TOOLS}.doctor", f"{TOOLS}.predict"}
    assert found <= set(programs())


@pytest.mark.parametrize("name", programs())
def test_help(name, capsys):
    program = f"python -m {name}"
    status = 0
    try:
        cli.run(program_module(name).main, [program, "--help"])
    except SystemExit as ended:
        status = ended.code
    printed = capsys.readouterr()
    assert (status, printed.err) == (0, "")
    # argparse's usage line, or absl's list of flags under the program's name.
    assert printed.out.startswith(f"usage: {program} ") or f"\n{program}:\n" in printed.out


class Checker:
    """Checks command lines; UserError says what is wrong.

    Attributes:
        runs: the configs of the runs that documented commands make, by workdir.
    """

    def __init__(self):
        self.runs = {}

    def check(self, command):
        """Checks one command."""
        path, *words = command.words
        program = Path(path).name
        if re.fullmatch(r"python[\d.]*", program):
            self._python(words, command.complete)
        elif program == "scratchdet" or program in COMMANDS:
            self._tool(words if program == "scratchdet" else [program, *words], command.complete)
        elif program in ("train.py", "eval.py"):
            self._program(f"{TOOLS}.{program[:-3]}", words, command.complete)
        elif program.startswith("benchmarks."):
            self._program(program, words, command.complete)
        elif program == "make":
            self._make(words)
        elif program == "pytest":
            self._pytest(words)
        elif program == "pip":
            self._pip(words)
        elif program == "sh":
            self._file(words[0])
        elif not shutil.which(program) and program not in ("ruff", "mypy"):
            raise UserError(f"there is no program {program}")

    def _python(self, words, complete):
        if words[0] == "-m" and words[1] == "pytest":
            self._pytest(words[2:])
        elif words[0] == "-m" and words[1] == "pip":
            self._pip(words[2:])
        elif words[0] == "-m" and words[1] in ("scratchdet_jax", TOOLS):
            self._tool(words[2:], complete)
        elif words[0] == "-m" and words[1] != "venv":
            self._program(words[1], words[2:], complete)
        elif words[0] in ("train.py", "eval.py"):
            self._program(f"{TOOLS}.{words[0][:-3]}", words[1:], complete)
        elif words[0].endswith(".py"):
            self._script(*words)

    def _tool(self, words, complete):
        if words and words[0] in COMMANDS:
            self._program(f"{TOOLS}.{words[0]}", words[1:], complete)
        elif words and words[0] != "--help" and not PLACEHOLDER.fullmatch(words[0]):
            raise UserError(f"scratchdet has no command {words[0]}")

    def _script(self, path, *words):
        file = next((file for file in (ROOT / path, ROOT / "docs" / path) if file.is_file()), None)
        if file is None:
            raise UserError(f"there is no {path}")
        beside = "".join(source.read_text() for source in file.parent.glob("*.py"))
        for word in words:
            if word.startswith("--") and f'"{word.partition("=")[0]}"' not in beside:
                raise UserError(f"{path} has no flag {word}")

    def _file(self, path):
        if not list(ROOT.glob(path.partition("::")[0])):
            raise UserError(f"there is no {path}")

    def _make(self, words):
        text = (ROOT / "Makefile").read_text()
        for word in words:
            name, separator, _ = word.partition("=")
            if separator and not re.search(rf"\b{name}\b", text):
                raise UserError(f"the Makefile does not know {name}")
            if not separator and name not in documented.make_targets():
                raise UserError(f"make has no target {name}")

    def _pytest(self, words):
        words = iter(words)
        for word in words:
            if word in ("-m", "-k", "-n"):
                next(words)
            elif not word.startswith(("-", "$")):
                self._file(word)

    def _pip(self, words):
        for flag, file in itertools.pairwise(words):
            if flag in ("-r", "-c"):
                self._file(file)

    def _program(self, name, arguments, complete):
        module = program_module(name)
        if "--help" in arguments:
            return
        if hasattr(module, "define_flags"):
            self._flags(name, module, list(arguments), complete)
        else:
            self._parser(module, arguments, complete)

    def _flags(self, name, module, arguments, complete):
        """Checks a command line of absl: flags, and for most programs a config."""
        if hasattr(module, "MODES") and (complete or arguments):
            if not arguments or arguments[0] not in module.MODES:
                raise UserError(f"name one of {', '.join(module.MODES)} first")
            del arguments[0]
        values = module.define_flags()
        arguments = [a for argument in arguments for a in _filled_in(argument, values)]
        if "cli.parse_config(" not in inspect.getsource(module):
            cli.parse_flags([name, *arguments], values)
        else:
            recipe = None if complete else defaults.get_config()
            if name == f"{TOOLS}.eval":
                recipe = self._config_of_run(arguments)
            config = cli.parse_config([name, *arguments], values, recipe)
            validate(config, device_count=1)
            if "workdir" in values and name != f"{TOOLS}.eval":
                self.runs[values["workdir"].value or f"runs/{config.name}"] = config
        missing = [flag for flag in NEEDED.get(name, []) if not values[flag].value]
        if missing and complete:
            raise UserError(f"--{missing[0]} is missing")

    def _config_of_run(self, arguments):
        """The config of the run that is evaluated, or of the recipe of the paper."""
        workdirs = [a.partition("=")[2] for a in arguments if a.startswith("--workdir=")]
        config = self.runs.get(workdirs[0]) if workdirs else None
        return (config or defaults.get_config()).copy_and_resolve_references()

    def _parser(self, module, arguments, complete):
        """Checks a command line of argparse; a doctor's may override a config."""
        parser = module.parser("program")
        if not complete or any(map(PLACEHOLDER.fullmatch, arguments)):
            _relax(parser, everything=not complete)
        options, overrides = parser.parse_known_args(arguments)
        overrides = [a for argument in overrides for a in _filled_in(argument, {})]
        if overrides and not hasattr(options, "config"):
            raise UserError(f"unrecognized: {' '.join(overrides)}")
        for recipe in (getattr(options, "config", None), getattr(options, "recipe", None)):
            if recipe and not PLACEHOLDER.fullmatch(recipe):
                load_recipe(recipe)
            elif recipe:
                options.config = None
        if hasattr(options, "config"):
            config = load_recipe(options.config) if options.config else defaults.get_config()
            validate(cli.parse_config(["", *overrides], flags.FlagValues(), config), 1)


def _filled_in(argument, values):
    """The argument with something harmless for a placeholder, or nothing."""
    name, separator, value = argument.lstrip("-").partition("=")
    if not separator or not (PLACEHOLDER.fullmatch(value) or PLACEHOLDER.fullmatch(name[7:])):
        return [argument]
    if name == "config":
        return ["--config=configs/voc300.py"]
    if name.startswith("config."):
        if name != "config.FIELD":
            check_field(name)
        return []
    number = isinstance(values[name].parser, flags.IntegerParser | flags.FloatParser)
    return [f"--{name}={1 if number else value}"]


def _relax(parser, everything):
    """Lets a parser take placeholders for values; if `everything`, also missing arguments."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _relax(command, everything)
        else:
            action.type = action.choices = None
            if everything and not action.option_strings:
                action.nargs = "*"
        action.required = action.required and not everything
    for group in parser._mutually_exclusive_groups:
        group.required = group.required and not everything


def check_field(name):
    """Checks that a config has the field or group `config.NAME`."""
    fields = defaults.flatten(defaults.get_config())
    path = name.removeprefix("config.")
    if not any(field == path or field.startswith(f"{path}.") for field in fields):
        raise UserError(f"there is no field config.{path}")


@pytest.fixture
def strict(monkeypatch):
    """Makes argparse's errors UserErrors, runs in the folder of the documentation's commands, and
    traces each network once."""

    def fail(parser, message):
        raise UserError(message)

    monkeypatch.setattr(argparse.ArgumentParser, "error", fail)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(ssd, "feature_shapes", feature_shapes)


def test_every_documented_command_is_one_that_its_program_takes(strict):
    commands = documented.commands()
    assert len(commands) > 300
    checker, wrong = Checker(), []
    evaluates = ("eval.py", "eval")  # after the commands that make the runs
    for command in sorted(commands, key=lambda c: any(w in evaluates for w in c.words[:2])):
        try:
            checker.check(command)
        except (UserError, ValueError, KeyError) as error:
            wrong.append(f"{command}: {error}")
    assert not wrong, "\n".join(["", *wrong])


PAGE = """
Run `make test PART=1` or `train.py
--config=configs/shapes.py`, not `python` alone; `score voc` scores.

```sh
export A=b; for i in 0 1; do
  JAX_PROCESS_ID=$i srun -n 2 .venv/bin/python train.py --config=RECIPE \\
      --config.seed=$i [--workdir=runs/<name> …] > log 2>&1 &  # twice
done; wait
ssh host --command='
  cd scratchdet && python eval.py --workdir=runs/a' | tee log
python -m benchmarks.exported --workdir=runs/a $(head -1 list | sed 's|.*|&.jpg|')
```
```
python this.py is output
```
"""


def test_commands_are_found():
    train = ".venv/bin/python train.py --config=RECIPE --config.seed={} --workdir=runs/PLACEHOLDER"
    assert [str(command) for command in documented.of_markdown(PAGE, "a.md")] == [
        f"a.md:7: {train.format(0)}",
        f"a.md:7: {train.format(1)}",
        "a.md:10: python eval.py --workdir=runs/a",
        "a.md:12: python -m benchmarks.exported --workdir=runs/a 1",
        "a.md:2: make test PART=1",
        "a.md:2: train.py --config=configs/shapes.py",
        "a.md:3: score voc",
    ]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("scratchdet pedict --workdir=a", "no command pedict"),
        ("scratchdet predict --workdir=a", "required: --output"),
        ("scratchdet plot a --output=b --colour=c", "unrecognized: --colour=c"),
        ("scratchdet report a --output=b --images=many", "--images: many is not"),
        ("scratchdet doctor a --config.image_sise=3", "no field config.image_sise"),
        ("scratchdet forecast --config=configs/voc300.py --device=h100", "train, eval first"),
        ("scratchdet forecast eval --config=configs/voc300.py", "--device is missing"),
        ("python train.py --workdir=a", "no recipe given"),
        ("python train.py --config=configs/voc30.py", "no recipe configs/voc30.py"),
        ("python train.py --config=configs/bn_ablation.py:bth", "bth"),
        ("python train.py --config=configs/voc300.py --work_dir=a", "work_dir"),
        ("python train.py --config=voc300 --config.batch_sise=FILE", "no field config.batch_sise"),
        ("python train.py --config=voc300 --config.model.width=wide", "config.model.width=wide"),
        ("python train.py --config=voc300 --config.image_size=20", "too small for the anchor step"),
        ("python train.py --config=voc300 --config.parallel=both", "shard_map, pmap"),
        ("python eval.py --workdir=a --config.eval.metric=map", "config.eval.metric is 'map'"),
        ("python -m benchmarks.train_stop --config=voc300", "no module benchmarks.train_stop"),
        ("python -m benchmarks.layouts --layout=1x1", "layout"),
        ("python -m experiments.thesis --output=a --seeds=x", "--seeds: invalid int"),
        ("python tests/faults/campaign.py --kill=3", "no flag --kill"),
        ("python -m pytest tests/ops/test_box.py", "no tests/ops/test_box.py"),
        ("pip install -r requirement.txt", "no requirement.txt"),
        ("make tests", "no target tests"),
        ("make test PARTS=1", "does not know PARTS"),
        ("sh docs/jurney.sh BCCD", "no docs/jurney.sh"),
    ],
)
def test_mistakes_in_commands_are_found(strict, command, reason):
    (found,) = documented.of_shell(command, "a.md")
    with pytest.raises(UserError, match=re.escape(reason)):
        Checker().check(found)


def fast_commands():
    """(module, arguments) of documented commands that take seconds, each once.

    Left out: prepare of COCO's test images, which are not in docs/own-data.md, and what needs a
    bucket (tests/test_pods_page.py).
    """
    fast = ("prepare", "plot", "summary", "benchmarks.scaling")
    found = {}
    for command in documented.commands():
        words = list(command.words)
        name = next((word for word in words[:3] if word in fast), None)
        runnable = "…" not in str(command) and "://" not in str(command) and len(words) > 2
        if name and ".md:" in command.where and runnable:
            arguments = words[words.index(name) + 1 :]
            found[name, *arguments] = name if "." in name else f"{TOOLS}.{name}", arguments
    return [pair for key, pair in found.items() if "--name=coco_test" not in key]


def test_documented_commands_that_take_seconds_run(tmp_path, monkeypatch, capsys):
    write_photos(tmp_path)
    (tmp_path / "VOCdevkit").mkdir()
    shutil.copytree(tmp_path / "BCCD", tmp_path / "VOCdevkit" / "VOC2007")
    counts = {
        "gradients and loss sums": 98_353_788,
        "BatchNorm statistics, forward and backward": 174_816,
        "all-reduce operations as compiled": 95,
    }
    (tmp_path / "counts.json").write_text(json.dumps(counts))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    wrong, printed = [], {}
    for name, arguments in fast_commands():
        if name.endswith(".plot"):
            for run in (word for word in arguments if not word.startswith("--")):
                run_records.write(tmp_path / run, [run_records.train(step) for step in range(1, 9)])
        status = exit_status(program_module(name).main, *arguments)
        program = name.rpartition(".")[2]
        printed[program], error = capsys.readouterr()
        if status:
            wrong.append(f"{name} {' '.join(arguments)}: {error}")
        shutil.rmtree("data", ignore_errors=True)
    assert not wrong
    assert printed.keys() == {"prepare", "plot", "summary", "scaling"}
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert all(line in page for line in printed["scaling"].splitlines())


def all_flags():
    """Every flag of every program."""
    names = set()
    for name in programs():
        module = program_module(name)
        if hasattr(module, "define_flags"):
            names |= set(module.define_flags())
        elif hasattr(module, "parser"):
            names |= _options(module.parser(""))
    return names | {"config"} | _options(campaign.parser("")) | _options(signals.parser(""))


def _options(parser):
    names = set()
    for action in parser._actions:
        names |= {option.lstrip("-") for option in action.option_strings}
        if isinstance(action, argparse._SubParsersAction):
            names |= set().union(*map(_options, action.choices.values()))
    return names


def test_every_flag_and_field_that_a_page_names_exists(strict):
    known, wrong, seen = all_flags(), [], 0
    for name, text in documented.pages():
        for line, code in documented.inline_code(text):
            fields = re.findall(r"(?<![\w./-])config\.[a-z_]+(?:\.[a-z_]+)*(?![\w(/])", code)
            words = code.split() if code.startswith("--") else []
            named = [word[2:].partition("=")[0] for word in words if word.startswith("--")]
            fields += [flag for flag in named if flag.startswith("config.") and flag.islower()]
            for flag in named:
                if not flag.startswith("config.") and flag not in known:
                    wrong.append(f"{name}:{line}: no program has a flag --{flag}")
            for field in fields:
                try:
                    check_field(field)
                except UserError as error:
                    wrong.append(f"{name}:{line}: {error}")
            seen += len(named) + len(fields)
    assert seen > 200
    assert not wrong, "\n".join(["", *wrong])
