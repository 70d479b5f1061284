"""Eight CPU devices for every test, set before JAX is first imported.

The tests of a session share compiled programs, because many train the same small detector.
"""

import os
import shutil
import tempfile
from pathlib import Path

CACHE = "JAX_COMPILATION_CACHE_DIR"  # the processes that run the tests inherit it
MINE = "scratchdet_jax_tests_"

os.environ["JAX_PLATFORMS"] = "cpu"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )
if "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    # Most programs of the tests run a few times only: compiling them is what takes the time.
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=1"
if CACHE not in os.environ:
    os.environ[CACHE] = tempfile.mkdtemp(prefix=MINE)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

LONGEST = ("test_processes.py", "test_loop.py", "test_step.py", "test_recipes.py")  # begin first


def pytest_collection_modifyitems(items):
    """Puts the longest files first: with several processes, none is left over at the end."""
    first = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path.name, len(LONGEST)))


def pytest_unconfigure(config):
    """Removes the compiled programs; the processes that run the tests leave that to the first."""
    if not hasattr(config, "workerinput") and Path(os.environ[CACHE]).name.startswith(MINE):
        shutil.rmtree(os.environ[CACHE], ignore_errors=True)
