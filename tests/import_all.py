"""Imports every module of the repository in one process, and writes what that did as JSON.

python tests/import_all.py

The tests' own modules (test_*.py, conftest.py) are left out, because pytest imports them, and so
are the examples in docs/, which are scripts that act at once.
"""

import importlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import traceback
from pathlib import Path
from unittest.mock import MagicMock

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("scratchdet_jax", "configs", "benchmarks", "experiments", "tests")
PEERS = ROOT / "benchmarks" / "peers"  # some are scripts for an environment of their own
ACTS = {  # events of sys.audit that an import must not cause, as (event, index of what it acts on)
    "os.mkdir": 0,
    "os.rename": 1,
    "os.remove": 0,
    "os.symlink": 1,
    "os.system": 0,
    "subprocess.Popen": 1,
    "socket.connect": 1,
    "socket.getaddrinfo": 0,
}


def modules() -> list[str]:
    """Returns the dotted names of all modules, in the order of their paths."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    paths += [ROOT / "train.py", ROOT / "eval.py"]
    mine = [p for p in paths if not p.name.startswith("test_") and p.name != "conftest.py"]
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in mine]
    return [".".join(p[:-1] if p[-1] == "__init__" else p) for p in parts]


def packages(requirements: Path) -> set[str]:
    """Returns the names in a file of requirements."""
    lines = requirements.read_text(encoding="utf-8").splitlines()
    return {line.partition("==")[0] for line in lines if line and not line.startswith("#")}


class Elsewhere(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds packages of the peers' environment, which is not this one: their content is a mock."""

    names = packages(PEERS / "requirements.txt") - packages(ROOT / "requirements-torch.txt")

    def find_spec(self, name, path=None, target=None):
        """Returns a spec for the packages and for everything in them."""
        if name.partition(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        """Returns the mock."""
        return MagicMock(__path__=[], __spec__=spec)

    def exec_module(self, module):
        """Does nothing: a mock has every name."""


def main():
    """Imports all modules; prints the failures, side effects and modules that need PyTorch."""
    optional = packages(ROOT / "requirements-torch.txt")
    failed, needs, acts = {}, [], []
    current = ""

    def watch(event, arguments):
        writes = event == "open" and isinstance(arguments[2], int)
        if writes and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            acts.append(f"{current} opens {arguments[0]} to write")
        elif event in ACTS:
            acts.append(f"{current}: {event} {arguments[ACTS[event]]}")

    sys.path[:0] = [str(ROOT), str(PEERS)]
    sys.meta_path.append(Elsewhere())
    sys.addaudithook(watch)
    for current in modules():
        try:
            importlib.import_module(current)
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and error.name in optional:
                needs.append(current)
            else:
                where = traceback.extract_tb(error.__traceback__)[-1]
                failed[current] = f"{where.filename}:{where.lineno}: {error!r}"
    import matplotlib
    from absl import flags

    theirs = (matplotlib.get_configdir(), matplotlib.get_cachedir())
    mine = (*FOLDERS, "train", "eval")
    defined = [
        f"{module} defines --{flag.name}"
        for module, found in flags.FLAGS.flags_by_module_dict().items()
        for flag in found
        if module.partition(".")[0] in mine
    ]
    result = {
        "modules": modules(),
        "failed": failed,
        "needs_torch": needs,
        "acts": [act for act in acts if not any(folder in act for folder in theirs)],
        "flags": defined,
    }
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
