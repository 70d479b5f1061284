"""The built package is complete, and runs from any folder once it is installed."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILT_FROM = ("pyproject.toml", "README.md", "requirements.txt", "scratchdet_jax", "configs")
DATA = "data/share/scratchdet_jax/configs/"


def run(*command, cwd):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without a network: setuptools is a requirement of the tests."""
    source = tmp_path_factory.mktemp("source")  # building writes beside the sources
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    options = ("--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", source / "dist")
    done = run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=source)
    assert done.returncode == 0, done.stderr + done.stdout
    (path,) = (source / "dist").iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of the commands of a new environment that has the wheel, and this one's packages.

    An installed package is found before those of a .pth file, so it is the wheel's that runs.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = ("--python", python, "install", "--no-index", "--no-deps", wheel)
    done = run(sys.executable, "-m", "pip", *options, cwd=folder)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder / "bin"


def files(folder, pattern):
    return {p.relative_to(ROOT / folder).as_posix() for p in (ROOT / folder).rglob(pattern)}


def test_the_wheel_holds_the_package_and_the_recipes_and_nothing_else(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    package = {f"scratchdet_jax/{name}" for name in files("scratchdet_jax", "*.py")}
    templates = {f"scratchdet_jax/{name}" for name in files("scratchdet_jax", "templates/*")}
    assert len(templates) == 7
    recipes = {name for name in files("configs", "*.py") if Path(name).name != "__init__.py"}
    assert {n for n in names if DATA not in n} == package | templates
    assert {n.partition(DATA)[2] for n in names if DATA in n} == recipes


def test_the_installed_command_runs_a_recipe_by_name_from_an_empty_folder(installed, tmp_path):
    done = run(installed / "scratchdet", "--help", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("usage: scratchdet COMMAND")
    done = run(installed / "scratchdet", "summary", "--config=mmdet_release/ssd300", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Root-ResNet-34" in done.stdout and "8,764" in done.stdout
    done = run(installed / "scratchdet", "train", "--config=voc3000", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "recipes installed: " in done.stderr and "voc300, " in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_installed_package_imports_from_an_empty_folder(installed, tmp_path):
    code = "import scratchdet_jax; print(scratchdet_jax.__file__, scratchdet_jax.load)"
    done = run(installed / "python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed.parent))
