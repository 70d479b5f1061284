"""Measures the speed of the training step.

python -m benchmarks.train_step --config=configs/voc300.py

Prints images/s, GFLOP per image as compiled, the share of the device's peak, the share of the
step spent in augmentation, matching and loss, and device memory. The input is synthetic and already
on the device, so the host's work is not included.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks import measure
from scratchdet_jax import cli
from scratchdet_jax.detector import Detector
from scratchdet_jax.ops.losses import multibox_sums
from scratchdet_jax.training.step import example_keys


def define_flags() -> flags.FlagValues:
    """Returns the flags besides the config."""
    values = flags.FlagValues()
    flags.DEFINE_integer(
        "repeats", 5, "Timed calls of each part; the median is reported.", flag_values=values
    )
    flags.DEFINE_string("json", None, "Also write the figures to this file.", flag_values=values)
    return values


def main(argv: Sequence[str]) -> None:
    """Parses the command line and measures."""
    values = define_flags()
    config, repeats = cli.parse_config(argv, values), values.repeats
    training = measure.make_training(config)
    devices, parts = training.mapping.mesh.size, config.accumulate_steps
    state = training.new_state(config.image_size)
    step = training.mapping.map_train_step(training.step)
    compiled = step.lower(state, training.batch).compile()

    def whole_step() -> jax.Array:
        nonlocal state
        state, metrics = compiled(state, training.batch)
        return metrics["loss"]

    full = measure.seconds(whole_step, repeats)
    inputs, loss = _share(config, training.detector, training.example, devices, repeats)
    images = config.batch_size
    work = measure.gflop(compiled) * devices / images
    if parts > 1 and jax.default_backend() != "cpu":
        work *= parts  # XLA counts the body of a loop once
    per_device = images / full / devices
    peak = measure.peak_tflops(config.model.dtype)
    measure.report(
        f"training step, {config.name}, batch {images}, {config.model.dtype}, {config.parallel}",
        [
            ("step, s", full),
            ("images/s", images / full),
            ("compiled GFLOP per image", work),
            ("achieved TFLOP/s per device", per_device * work / 1e3),
            ("share of peak", per_device * work / 1e3 / peak if peak else "peak not known"),
            ("augmentation + matching, s", inputs),
            ("loss and its gradient, s", loss),
            ("share of augmentation + matching + loss", (inputs + loss) / full),
            ("device memory planned, MiB", measure.device_memory_mib(compiled)),
        ],
        values.json,
    )


def _share(
    config, detector: Detector, example: dict, devices: int, repeats: int
) -> tuple[float, float]:
    """Times one device's share of a batch, in seconds: inputs, and the loss with its gradient."""
    local = config.batch_size // config.accumulate_steps // devices
    batch = jax.device_put({k: v[:local] for k, v in example.items()})
    keys = example_keys(config.seed, 0, jnp.arange(local))
    prepare = jax.jit(lambda batch, keys: detector.inputs(batch, keys))
    _, targets = prepare(batch, keys)
    inputs = measure.seconds(lambda: prepare(batch, keys), repeats)

    anchors = len(detector.anchors)
    logits = jax.random.normal(jax.random.key(0), (local, anchors, len(measure.CLASSES) + 1))
    offsets = jax.random.normal(jax.random.key(1), (local, anchors, 4))

    @jax.jit
    @lambda f: jax.grad(f, argnums=(0, 1))
    def gradient(logits: jax.Array, offsets: jax.Array) -> jax.Array:
        sums = multibox_sums(
            logits, offsets, targets.labels, targets.offsets, config.loss.negative_ratio
        )
        return sums.total

    loss = measure.seconds(lambda: gradient(logits, offsets), repeats)
    return inputs * config.accumulate_steps, loss * config.accumulate_steps


if __name__ == "__main__":
    cli.run(main)
