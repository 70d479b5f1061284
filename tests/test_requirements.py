"""Requirements have bounds on both sides, and the lock file is within them."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def entries(name: str) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-r")]


def locked() -> dict[str, str]:
    pins = {}
    for entry in entries("requirements-lock.txt"):
        (pin,) = entry.specifier
        assert pin.operator == "==", entry
        pins[canonicalize_name(entry.name)] = pin.version
    return pins


@pytest.mark.parametrize(
    "name",
    [
        "requirements.txt",
        "requirements-dev.txt",
        "requirements-s3.txt",
        "requirements-tpu.txt",
        "requirements-cuda.txt",
    ],
)
def test_every_requirement_has_bounds_and_is_locked_at_the_lower_one(name):
    pins = locked()
    for entry in entries(name):
        bounds = {part.operator: part.version for part in entry.specifier}
        assert set(bounds) == {">=", "<"}, entry
        assert pins[canonicalize_name(entry.name)] == bounds[">="], entry
        assert pins[canonicalize_name(entry.name)] in entry.specifier
