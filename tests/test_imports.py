"""The rooms of the house: a module imports its own room and the rooms below it, never one above.

The core stands alone: none of its modules imports an application. docs/architecture.md says what
each room is for. Every module can be imported, and importing it has no effect.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "scratchdet_jax"
# From the top floor down; a name is a folder or a module of the package.
APPLICATIONS = ("tools", "reports", "forecast", "interop", "datasets", "buckets")
CORE = (
    "predictor",
    "training",
    "evaluation",
    "run",
    "parallel",
    "cli",
    "libraries",
    "config",
    "detector",
    "models",
    "data",
    "ops",
    "mirror",
    "files",
    "stopping",
    "paths",
    "progress",
    "errors",
    "version",
)
ROOMS = APPLICATIONS + CORE
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))
# The most that may stand behind the training loop.
MODULES, LINES = 60, 10_000


def imported(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports anywhere, lazily too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            # A name imported from a package may be one of its modules.
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(module: str) -> str | None:
    """The room of a dotted module name; None for what is not in the package."""
    parts = module.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 else None


def room_of_file(path: Path) -> str:
    return path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")


def modules_of(name: str) -> set[str]:
    """Rooms that exist: a name such as `scratchdet_jax.load` is a function, not a room."""
    found = room(name)
    return {found} if found in ROOMS else set()


def dotted(path: Path) -> str:
    """The dotted name of a module's file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def named(path: Path, files: dict[str, Path]) -> set[str]:
    """The modules of the package that a file names: not the package that a module is taken from."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            taken = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in files else node.module for name in taken}
    return names & files.keys()


def closure(module: str, files: dict[str, Path]) -> set[str]:
    """The modules that `module` names, followed to their end, and `module` itself."""
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += named(files[name], files)
    return seen


def test_every_module_is_in_a_room():
    assert {room_of_file(path) for path in FILES} - {"__init__", "__main__"} == set(ROOMS)


def test_no_import_runs_upwards():
    wrong = []
    for path in FILES:
        own = room_of_file(path)
        if own in ("__init__", "__main__"):
            continue  # the Python interface and `python -m scratchdet_jax` stand above all rooms
        allowed = set(ROOMS[ROOMS.index(own) :])
        above = {name for name in imported(path) if modules_of(name) - allowed}
        wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in sorted(above)]
    assert not wrong


def test_the_core_names_an_application_only_in_its_two_hooks():
    """Neither an import nor a string, by which a module could be imported: but for the hooks."""
    naming = {
        path.relative_to(ROOT / PACKAGE).as_posix()
        for path in FILES
        if room_of_file(path) in CORE
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and any(node.value.startswith(f"{PACKAGE}.{name}") for name in APPLICATIONS)
    }
    assert naming == {"data/first_use.py", "paths.py"}


def test_the_training_loop_can_be_read_in_an_evening():
    files = {dotted(path): path for path in FILES}
    behind = closure(f"{PACKAGE}.training.loop", files)
    lines = sum(len(files[name].read_text(encoding="utf-8").splitlines()) for name in behind)
    assert len(behind) <= MODULES
    assert lines <= LINES


def test_the_library_imports_neither_recipes_nor_experiments():
    outside = {"configs", "experiments", "benchmarks", "tests", "train", "eval"}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in FILES
        for name in imported(path)
        if name.split(".")[0] in outside
    ]
    assert not wrong


def test_the_documentation_has_the_same_order():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| `")]
    names = [name.strip("`").removesuffix("/").removesuffix(".py") for name in listed]
    assert [name for name in names if name in ROOMS] == list(ROOMS)


def test_tests_share_nothing_by_test_modules():
    """A test module may skip itself while it is imported; shared code must not."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / "tests").rglob("*.py")
        for name in sorted(imported(path))
        if name.startswith("tests.")
        and any(part.startswith("test_") for part in name.split(".")[:-1])
    ]
    assert not wrong


@pytest.fixture(scope="module")
def all_imported():
    """What importing every module in one process did: see tests/import_all.py."""
    done = subprocess.run(
        [sys.executable, "tests/import_all.py"],
        cwd=ROOT,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # a module that prints breaks it


def test_every_module_is_imported(all_imported):
    assert not all_imported["failed"]
    assert {dotted(path) for path in FILES} <= set(all_imported["modules"])


def test_every_module_is_imported_with_pytorch(all_imported):
    """`make test-torch` runs this file, so no module escapes."""
    pytest.importorskip("torch")
    assert not all_imported["needs_torch"]


def test_importing_has_no_effect(all_imported):
    """No flags defined for all commands, no files written, no network, no programs."""
    assert not all_imported["flags"] + all_imported["acts"]
