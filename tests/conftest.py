"""Eight CPU devices for every test, set before JAX is first imported.

The tests of a session share compiled programs, because many train the same small detector.
"""

import os
import shutil
import tempfile
import uuid
import zlib
from pathlib import Path

import pytest

from tests import storage as storage_server
from tests import xla

CACHE = "JAX_COMPILATION_CACHE_DIR"  # the processes that run the tests inherit it
MINE = "scratchdet_jax_tests_"

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", xla.flags(devices=8))
if CACHE not in os.environ:
    os.environ[CACHE] = tempfile.mkdtemp(prefix=MINE)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

PARTS = 4  # CI runs one part of the slow tests a day
PART_OF_FILE = {  # the longest files of slow tests; the others get a part by their name
    "test_quality.py": 1,
    "test_loop.py": 2,
    "test_landscape.py": 2,
    "test_processes.py": 3,
    "test_collectives.py": 3,
    "test_step.py": 4,
    "test_against_torch.py": 4,
}
SPREAD = ("test_recipes.py",)  # the slow tests of these files are spread over all parts

LONGEST = ("test_processes.py", "test_loop.py", "test_step.py", "test_recipes.py")  # begin first


def pytest_addoption(parser):
    """Adds --part."""
    parser.addoption(
        "--part", type=int, choices=range(1, PARTS + 1), help=f"run one of {PARTS} parts"
    )


def part(item) -> int:
    """Returns the part of a test, 1 to PARTS; it does not depend on what is installed."""
    file = item.path.name
    if file in SPREAD:
        return zlib.crc32(item.name.encode()) % PARTS + 1
    return PART_OF_FILE.get(file) or zlib.crc32(file.encode()) % PARTS + 1


@pytest.hookimpl(trylast=True)  # after -m
def pytest_collection_modifyitems(config, items):
    """Keeps one part if asked to, and puts the longest files first.

    With several processes, no long file is left over at the end.
    """
    if wanted := config.getoption("--part"):
        config.hook.pytest_deselected(items=[item for item in items if part(item) != wanted])
        items[:] = [item for item in items if part(item) == wanted]
    first = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path.name, len(LONGEST)))


def pytest_unconfigure(config):
    """Removes the compiled programs; the processes that run the tests leave that to the first."""
    if not hasattr(config, "workerinput") and Path(os.environ[CACHE]).name.startswith(MINE):
        shutil.rmtree(os.environ[CACHE], ignore_errors=True)


@pytest.fixture(scope="session")
def storage(tmp_path_factory):
    """A server of the Cloud Storage API, which this process uses from now on."""
    if storage_server.binary() is None:
        pytest.skip("the storage server (fake-gcs-server) does not run on this machine")
    with storage_server.running(tmp_path_factory.mktemp("storage") / "root") as server:
        os.environ.update(server.environment)
        yield server


@pytest.fixture
def bucket(storage):
    """The URL of an empty bucket, on an undisturbed network."""
    network = storage.network
    network.delay = network.share = network.away_until = 0.0
    network.fail_next.clear()
    network.faults.clear()
    return storage.make_bucket(f"bucket-{uuid.uuid4().hex[:12]}")
