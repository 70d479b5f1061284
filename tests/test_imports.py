"""The rooms of the house: a module imports its own room and the rooms below it, never one above.

docs/architecture.md says what each room is for.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "scratchdet_jax"
# From the top floor down; a name is a folder or a module of the package.
ROOMS = (
    "tools",
    "training",
    "predictor",
    "evaluation",
    "run",
    "parallel",
    "cli",
    "config",
    "detector",
    "models",
    "data",
    "ops",
    "progress",
    "files",
    "stopping",
    "errors",
)
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))


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


def test_every_module_is_in_a_room():
    assert {room_of_file(path) for path in FILES} - {"__init__"} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT / PACKAGE)))
def test_no_import_runs_upwards(path):
    own = room_of_file(path)
    if own == "__init__":
        return  # the Python face stands above all rooms
    allowed = ROOMS[ROOMS.index(own) :]
    above = {name for name in imported(path) if modules_of(name) - set(allowed)}
    assert not above, f"{path.relative_to(ROOT)} imports from a room above: {sorted(above)}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT / PACKAGE)))
def test_the_library_imports_neither_recipes_nor_experiments(path):
    outside = {"configs", "experiments", "benchmarks", "tests", "train", "eval"}
    assert not {name for name in imported(path) if name.split(".")[0] in outside}


def test_the_documentation_has_the_same_order():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| `")]
    names = [name.strip("`").removesuffix("/").removesuffix(".py") for name in listed]
    assert [name for name in names if name in ROOMS] == list(ROOMS)


def test_tests_share_nothing_by_test_modules():
    """A test module may skip itself while it is imported; shared code must not."""
    for path in (ROOT / "tests").rglob("*.py"):
        shared = {name for name in imported(path) if name.startswith("tests.")}
        wrong = {
            name for name in shared if any(p.startswith("test_") for p in name.split(".")[:-1])
        }
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"
