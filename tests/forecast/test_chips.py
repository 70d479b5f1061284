"""The table of chips, and the sentences about devices and compilers that are not there."""

import importlib.metadata
import importlib.util

import pytest

from benchmarks.measure import chip_of
from scratchdet_jax.errors import UserError
from scratchdet_jax.forecast import chips


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("cpu", None),
    ],
)
def test_a_chip_is_found_by_its_device_kind(kind, name):
    chip = chip_of(kind)
    assert (chip and chip.name) == name


@pytest.mark.parametrize(
    ("chip", "rate"),
    # (units of a chip) · (side of a unit)²: multiply-adds a cycle
    [("v4", 8 * 128**2), ("v5e", 4 * 128**2), ("v5p", 8 * 128**2), ("v6e", 4 * 256**2)],
)
def test_the_clock_of_a_tpu_follows_from_its_peak(chip, rate):
    (chip,) = (c for c in chips.CHIPS if c.name == chip)
    assert chip.clock == pytest.approx(chip.peak("bfloat16") / (2 * rate), rel=0.005)


@pytest.mark.parametrize("name", ["b200", "v5e", "v5e:0x4", "v5p:8", "h100:2x2", "h100:0"])
def test_an_unknown_device_is_one_sentence(name):
    with pytest.raises(UserError, match=rf"--device={name} is not known: .* the chips are v4, v5e"):
        chips.devices(name)


@pytest.mark.parametrize(
    ("name", "file"), [("v5e:2x2", "requirements-tpu.txt"), ("h100", "requirements-cuda.txt")]
)
def test_a_missing_compiler_is_named(name, file, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"needs their compiler.*{file}"):
        chips.devices(name)


def test_a_libtpu_that_jax_does_not_name_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda n: "0.0.1" if n == "libtpu" else version(n)
    )
    with pytest.raises(UserError, match=r"libtpu 0\.0\.1 is installed, but JAX .* names 0\.0\.\d+"):
        chips.devices("v5e:2x2")
