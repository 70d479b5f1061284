"""The command `scratchdet`: it lists the tools without importing them, and runs one."""

import ast
import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from scratchdet_jax.__main__ import start
from scratchdet_jax.errors import UserError
from scratchdet_jax.tools import __main__ as commands
from tests.command import exit_status

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "scratchdet_jax" / "tools"
HELP = """
import sys
from scratchdet_jax import __main__ as command
sys.argv = ["/usr/bin/scratchdet", *sys.argv[1:]]
try:
    command.start()
finally:
    assert "jax" not in sys.modules
"""


def run(*command):
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_every_tool_is_a_command():
    tools = {p.stem for p in TOOLS.glob("*.py") if "cli.run(main)" in p.read_text()}
    tools |= {p.parent.name for p in TOOLS.glob("*/__main__.py")}
    assert set(commands.COMMANDS) == tools - {"__main__"}


def test_every_command_has_the_title_of_its_module():
    for name, title in commands.COMMANDS.items():
        file = TOOLS / name / "__main__.py" if name in commands._PACKAGES else TOOLS / f"{name}.py"
        documented = ast.get_docstring(ast.parse(file.read_text()))
        assert documented.partition("\n")[0] == title
        assert title.endswith(".") and "python" not in title, f"{name}: {title}"


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_the_commands_are_listed_without_jax(arguments):
    done = run("-c", HELP, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: scratchdet COMMAND")
    for name in commands.COMMANDS:
        assert f"  {name} " in done.stdout and commands.COMMANDS[name] in done.stdout


@pytest.mark.parametrize("name", ["train", "eval"])
def test_help_of_a_command_needs_no_jax(name):
    done = run("-c", HELP, name, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(commands.COMMANDS[name])
    assert f"\nscratchdet {name}:\n" in done.stdout and "--workdir" in done.stdout
    assert run(f"{name}.py", "--help").stdout == done.stdout.replace(
        f"scratchdet {name}:", f"{name}.py:"
    )


def test_a_command_runs():
    done = run("-m", "scratchdet_jax.tools", "summary", "--config=configs/shapes.py")
    assert done.returncode == 0, done.stderr
    assert "anchors" in done.stdout
    done = run("-m", "scratchdet_jax.tools", "score", "voc", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: python -m scratchdet_jax.tools score voc")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("trian", "did you mean train?"), ("import-torch", "import_torch?"), ("xyz", "are train, ")],
)
def test_an_unknown_command_is_one_sentence(name, hint):
    done = run("-m", "scratchdet_jax.tools", name)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: there is no command {name!r}") and hint in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_entry_point_is_the_dispatcher():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (name, value), *more = project["scripts"].items()
    point = importlib.metadata.EntryPoint(name, value, "console_scripts")
    assert (name, more, point.load()) == ("scratchdet", [], start)


def fails(error):
    def main(argv):
        raise error

    return main


def test_every_end_of_a_program_has_its_status(capsys):
    assert exit_status(lambda argv: None) == 0
    assert exit_status(fails(UserError("x is wrong"))) == 1
    assert capsys.readouterr().err == "error: x is wrong\n"
    assert exit_status(fails(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"


def test_help_without_absl_flags_is_left_to_the_program():
    seen = []
    assert exit_status(lambda argv: seen.append(argv), "--help") == 0
    assert seen == [["program", "--help"]]
