"""Accelerator chips: their data sheets, and the compilers that work without the chip itself.

JAX compiles for a chip that is not there from a description of it: libtpu knows the TPUs, and the
compiler for NVIDIA GPUs takes the figures of the data sheet. Nothing is executed.
"""

import importlib.metadata
import importlib.util
import math
import os
import re
import sys
from typing import Any, NamedTuple

from scratchdet_jax.errors import UserError, one_line

GIB = 2**30


class Chip(NamedTuple):
    """The data sheet of a chip, as one device of JAX.

    Attributes:
        name: as in `--device`.
        kind: how JAX's `device_kind` begins.
        bfloat16: dense peak in TFLOP/s.
        float32: the peak of float32 as XLA runs it by default: bfloat16 on TPUs, TF32 on NVIDIA.
        memory: bytes that the compiler or the driver leaves to a program.
        bandwidth: of the memory, in bytes a second.
        clock: cycles a second in which the compiler counts; None for GPUs.
    """

    name: str
    kind: str
    bfloat16: float
    float32: float
    memory: float
    bandwidth: float
    clock: float | None = None

    def peak(self, dtype: str) -> float:
        """Returns the FLOP a second for a compute type (`config.model.dtype`)."""
        return 1e12 * (self.bfloat16 if dtype == "bfloat16" else self.float32)


# TPUs: peaks and bandwidth are from Google's page on each version (cloud.google.com/tpu/docs).
# Memory is what the compiler says is available. The clock follows from the peak: multiply-adds a
# cycle are 128² in each of 4 units of a core (256² on v6e), and v4 and v5p have two cores a chip.
# NVIDIA: data sheets of the SXM modules. Memory is what the driver reports.
CHIPS = (
    Chip("v4", "TPU v4", 275, 275, 30.75 * GIB, 1228e9, 1.05e9),
    Chip("v5e", "TPU v5 lite", 197, 197, 15.75 * GIB, 819e9, 1.5e9),
    Chip("v5p", "TPU v5", 459, 459, 95.74 * GIB, 2765e9, 1.75e9),
    Chip("v6e", "TPU v6", 918, 918, 31.25 * GIB, 1640e9, 1.75e9),
    Chip("a100", "NVIDIA A100", 312, 156, 79.2 * GIB, 2039e9),
    Chip("h100", "NVIDIA H100", 989, 495, 79.2 * GIB, 3350e9),
    Chip("h200", "NVIDIA H200", 989, 495, 139.8 * GIB, 4800e9),
)

_HOPPER = {
    "core_count": 132,
    "fpus_per_core": 128,
    "shared_memory_per_core": 228 * 1024,
    "shared_memory_per_block_optin": 227 * 1024,
    "l2_cache_size": 50 * 2**20,
    "clock_rate_ghz": 1.98,
}
_GPUS = {
    "a100": {
        "core_count": 108,
        "fpus_per_core": 64,
        "shared_memory_per_core": 164 * 1024,
        "shared_memory_per_block_optin": 163 * 1024,
        "l2_cache_size": 40 * 2**20,
        "clock_rate_ghz": 1.41,
    },
    "h100": _HOPPER,
    "h200": _HOPPER,
}
# The same for every GPU since 2017.
_ANY_GPU = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "threads_per_core_limit": 2048,
    "shared_memory_per_block": 48 * 1024,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
}
# libtpu then asks no metadata server, shares the machine with other compilers, and is quiet about
# the chips that are missing.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


def devices(name: str) -> tuple[Chip, list[Any]]:
    """Returns JAX devices that programs can be compiled for, but not run on.

    Args:
        name: a TPU slice, such as "v5e:16x16" or "v5p:4x4x4"; or a GPU, such as "h100" or, for
            eight of them in one machine, "h100:8".

    Raises:
        UserError: the name is not one of these, or the compiler is not installed.
    """
    known, _, shape = name.partition(":")
    chip = next((chip for chip in CHIPS if chip.name == known), None)
    wanted = r"[1-9]\d*(x[1-9]\d*){1,2}" if chip and chip.clock else r"([1-9]\d*)?"
    if chip is None or not re.fullmatch(wanted, shape):
        raise UserError(
            f"--device={name} is not known: name a TPU slice by its sides, such as v5e:2x2 or "
            "v5p:2x2x1, or GPUs by their number, such as h100 or h100:8; the chips are "
            f"{', '.join(chip.name for chip in CHIPS)}"
        )
    return chip, _tpus(chip, shape) if chip.clock else _gpus(chip, shape)


def _tpus(chip: Chip, shape: str) -> list[Any]:
    _check_libtpu()
    from jax.experimental import topologies

    sides = list(map(int, shape.split("x")))
    options: dict[str, Any] = {}
    if math.prod(sides) < 4:  # part of a host
        options["chips_per_host_bounds"] = [*sides, 1][:3]
    if chip.name == "v4":  # both cores of a chip are one device, as on Cloud TPU
        options["chip_config_name"] = "megacore"
    try:
        slice_ = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{chip.name}:{shape}", **options
        )
    except Exception as error:  # of several types, from libtpu
        raise UserError(
            f"--device={chip.name}:{shape} is not a slice that libtpu knows: {one_line(error)}"
        ) from None
    return list(slice_.devices)


def prepare_environment() -> None:
    """Makes this process compile for chips that are absent; to be called before JAX is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if sys.modules.get("libtpu", ...) is None:
        del sys.modules["libtpu"]  # cli.run hides it from programs that compute
    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)


def _check_libtpu() -> None:
    """Raises UserError unless the libtpu that JAX names is installed."""
    install = "pip install -r requirements-tpu.txt (Linux, x86-64)"
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"a forecast for TPUs needs their compiler, libtpu: {install}")
    requirements = "\n".join(importlib.metadata.requires("jax") or [])
    found = re.search(r"^libtpu==([\d.]+)\.\*", requirements, re.M)
    named = found[1] if found else ""
    version = importlib.metadata.version("libtpu")
    if not version.startswith(named):
        raise UserError(
            f"libtpu {version} is installed, but JAX {importlib.metadata.version('jax')} names "
            f"{named}.*, and the programs of others cannot always be read: {install}"
        )


def _gpus(chip: Chip, shape: str) -> list[Any]:
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        raise UserError(
            "a forecast for NVIDIA GPUs needs their compiler (no GPU): "
            "pip install -r requirements-cuda.txt"
        )
    from jax.experimental import topologies

    machine = topologies.get_topology_desc(
        platform="cuda", target_config=_target(chip), topology=f"1x1x{shape or 1}"
    )
    return list(machine.devices)


def _target(chip: Chip) -> str:
    """Returns a GPU's data sheet as the compiler takes it (a text protocol buffer)."""
    sheet = "\n".join(f"  {name}: {value}" for name, value in (_ANY_GPU | _GPUS[chip.name]).items())
    capability = 9 if chip.name.startswith("h") else 8
    return f"""
        platform_name: "CUDA"
        device_description_str: "{chip.kind}"
        dnn_version_info {{ major: 9 minor: 10 }}
        gpu_device_info {{
          {sheet}
          memory_bandwidth: {chip.bandwidth:.0f}
          device_memory_size: {chip.memory:.0f}
          cuda_compute_capability {{ major: {capability} }}
          name: "{chip.kind}"
          device_vendor: "NVIDIA Corporation"
          driver_version: "13.0.0"
          runtime_version: "12.8.0"
          compile_time_toolkit_version: "12.8.0"
          dnn_version: "9.10.0"
        }}
    """
