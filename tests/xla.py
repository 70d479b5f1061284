"""XLA's flags for the tests, set before JAX is first imported.

Most programs of the tests run a few times only: compiling them is what takes the time. Level 1
compiles faster than the default, and so do loops without the newer emitters of fused operations.
Level 0 compiles four times faster still, but computes wrong gradients (jaxlib 0.10.2: 80 % off
in `test_packed_layers_equal_plain_ones`).
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
            "--xla_backend_optimization_level=1",
            *emitters,
        ]
    )
