"""The versions of the program and of its libraries, and the devices, that a run uses."""

import functools
import importlib.metadata
import platform

import jax

from scratchdet_jax.version import VERSION

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@functools.cache
def versions() -> dict[str, str]:
    """Returns versions by name, and "devices": their number, kind and processes."""
    found = {"scratchdet_jax": VERSION, "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    devices = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    if jax.process_count() > 1:
        devices += f" in {jax.process_count()} processes"
    return {**found, "devices": devices}
