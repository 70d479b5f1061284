"""XLA's flags for the tests, set before JAX is first imported.

Most programs of the tests run a few times only: compiling them is what takes the time. Without
optimisation and without the newer emitters of fused loops, a training step compiles in a quarter of
the CPU time.
"""

from importlib import metadata

VERSION = tuple(map(int, metadata.version("jaxlib").split(".")[:2]))


def flags(devices: int) -> str:
    """Returns the flags for a number of CPU devices."""
    # An unknown flag ends the process. Newer versions have no other emitters.
    emitters = ["--xla_cpu_use_fusion_emitters=false"] if VERSION < (0, 11) else []
    return " ".join(
        [
            f"--xla_force_host_platform_device_count={devices}",
            "--xla_backend_optimization_level=0",
            *emitters,
        ]
    )
