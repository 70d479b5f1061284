"""Counts the bytes that the training step sends between devices.

python -m benchmarks.collectives --config=FILE

Counts the bytes that one update all-reduces in two ways, from the parameters and BatchNorm layers
of the model and from the collectives in the compiled step, and fails if they differ. The step is
compiled for `--devices` CPU devices from shapes alone; nothing is executed.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections
from absl import flags

from scratchdet_jax import cli
from scratchdet_jax.errors import UserError

FLOAT32 = 4  # bytes; gradients and statistics are float32 for any config.model.dtype
LOSS_SUMS = 3  # classification, localization, positives


class Traffic(NamedTuple):
    """The bytes that one update all-reduces on each device.

    Attributes:
        gradients: gradients of all parameters except `shared`, and the sums of the loss.
        shared: gradients of biases that equal another bias's gradient; XLA sends them once.
        statistics: BatchNorm's statistics over its span, forward and backward.
        averages: BatchNorm's running statistics over all devices, where the span is smaller.
        norms: number of BatchNorm layers, over all microbatches.
    """

    gradients: int
    shared: int
    statistics: int
    averages: int
    norms: int

    @property
    def total(self) -> int:
        """Returns all bytes sent."""
        return self.gradients + self.statistics + self.averages


def expected_traffic(
    config: ml_collections.ConfigDict, variables: dict[str, Any], devices: int
) -> Traffic:
    """Returns the bytes that the step must reduce, from the shapes of `params` and `batch_stats`.

    A BatchNorm of C channels whose span covers several devices reduces mean and mean square (2·C)
    in the forward pass and their cotangents (2·C) in the backward pass. If its span is not the
    whole batch, it also averages its running mean and variance (2·C) over all devices.

    Where a block adds its branches, both end in a bias with the same cotangent: the gradients of
    the projection's bias and of the last bias of the other branch are one array.
    """
    import jax

    parts = config.accumulate_steps
    part = config.batch_size // parts
    local, span = part // devices, config.model.norm_span or part
    channels = [x.size for x in jax.tree.leaves(variables.get("batch_stats", {}))]
    pair = parts * sum(channels) * FLOAT32  # leaves are means and variances: 2·C per layer
    norms = parts * len(channels) // 2
    leaves, _ = jax.tree.flatten_with_path(variables["params"])
    parameters = sum(leaf.size for _, leaf in leaves)
    shared = sum(
        leaf.size
        for path, leaf in leaves
        if path[-1].key == "bias" and path[-2].key.startswith("projection")
    )
    across, whole = span > local and devices > 1, span == part
    return Traffic(
        gradients=(parameters - shared + LOSS_SUMS) * FLOAT32,
        shared=shared * FLOAT32,
        statistics=2 * pair if across else 0,
        averages=0 if across and whole else pair,
        norms=norms,
    )


def compile_step(config: ml_collections.ConfigDict, devices: int) -> tuple[str, dict[str, Any]]:
    """Returns the HLO of the compiled training step, and the shapes of its variables."""
    import jax

    from benchmarks import measure
    from scratchdet_jax.forecast.programs import training_program
    from scratchdet_jax.parallel.devices import DeviceMapping

    mapping = DeviceMapping("shard_map", jax.devices()[:devices])
    program = training_program(config, len(measure.CLASSES), mapping)
    return program.compile().as_text(), program.arguments[0].variables


def use_cpu_devices(count: int) -> None:
    """Gives this process `count` CPU devices. Must be called before JAX is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"


def define_flags() -> flags.FlagValues:
    """Returns the flags besides the config."""
    values = flags.FlagValues()
    flags.DEFINE_integer("devices", 8, "CPU devices to compile for.", flag_values=values)
    flags.DEFINE_string("json", None, "Also write the figures to this file.", flag_values=values)
    return values


def main(argv: Sequence[str]) -> None:
    """Parses the command line, compiles and counts."""
    devices = cli.parse_early(argv, define_flags()).devices
    if devices < 2:
        raise UserError(f"--devices={devices}: at least 2 are needed, or nothing is reduced")
    use_cpu_devices(devices)
    values = define_flags()
    config = cli.parse_config(argv, values)
    from benchmarks import measure
    from scratchdet_jax.forecast.compiled import collectives

    program, variables = compile_step(config, devices)
    found = collectives(program)
    reduced = [size for kind, size in found if kind == "all-reduce"]
    counted, traffic = sum(reduced), expected_traffic(config, variables, devices)
    measure.report(
        f"bytes all-reduced per update, {config.name}, norm_span {config.model.norm_span}",
        [
            ("gradients and loss sums", traffic.gradients),
            ("gradients not sent twice", traffic.shared),
            ("BatchNorm statistics, forward and backward", traffic.statistics),
            ("BatchNorm running averages", traffic.averages),
            ("from the model, together", traffic.total),
            ("in the compiled step, together", counted),
            ("all-reduce operations as compiled", len(reduced)),
            ("other collectives as compiled", len(found) - len(reduced)),
            ("BatchNorm layers", traffic.norms),
        ],
        values.json,
    )
    if counted != traffic.total or len(found) != len(reduced):
        raise UserError(
            f"the compiled step reduces {counted} bytes and has {len(found) - len(reduced)} other "
            f"collectives, but the model needs {traffic.total} bytes and no others: update "
            "benchmarks/collectives.py to scratchdet_jax/training/step.py"
        )


if __name__ == "__main__":
    cli.run(main)
