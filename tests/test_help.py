"""Every program answers --help: it exits with status 0 and says how it is used."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ELSEWHERE = "benchmarks.peers.train_"  # scripts for an environment of their own, with PyTorch


def programs():
    """Module names of everything in benchmarks/ and tools/ that runs by `python -m`."""
    folders = ("benchmarks", "scratchdet_jax/tools")
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    programs = zip(names, paths, strict=True)
    return [
        name
        for name, path in programs
        if '__name__ == "__main__"' in path.read_text() and not name.startswith(ELSEWHERE)
    ]


def test_programs_are_found():
    assert {"benchmarks.train_step", "scratchdet_jax.tools.doctor"} <= set(programs())


@pytest.mark.parametrize("module", programs())
def test_help(module):
    module = module.removesuffix(".__main__")
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    program = f"python -m {module}"
    # argparse's usage line, or absl's list of flags under the program's name.
    assert done.stdout.startswith(f"usage: {program} ") or f"\n{program}:\n" in done.stdout
