"""Speed of the training step: python benchmarks/train_step.py --config=configs/voc300.py.

Prints images/s, GFLOP per image as compiled, the share of the device's peak, the share of the
step that augmentation, matching and loss take, and device memory. Input is synthetic and lies on
the device, so the host's part is not in it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks import measure
from scratchdet_jax import cli
from scratchdet_jax.config.validation import validate
from scratchdet_jax.detector import Detector, build_detector
from scratchdet_jax.ops.losses import multibox_sums
from scratchdet_jax.parallel.devices import AXIS, DeviceMapping
from scratchdet_jax.run.state import create_state
from scratchdet_jax.training.optimizer import make_optimizer
from scratchdet_jax.training.step import example_keys, make_train_step

CLASSES = tuple(f"class {i}" for i in range(1, 21))

flags.DEFINE_integer("repeats", 5, "Timed calls of each part; the median counts.")
flags.DEFINE_string("json", None, "Also write the figures to this file.")


def main(argv: Sequence[str]) -> None:
    """Parses the command line and measures."""
    config, repeats = cli.parse_config(argv), flags.FLAGS.repeats
    mapping = DeviceMapping(config.parallel)
    validate(config, mapping.mesh.size)
    detector = build_detector(config, CLASSES, AXIS)

    optimizer = make_optimizer(config)
    state = mapping.replicate(create_state(detector.model, optimizer, config.image_size, 0))
    example = measure.synthetic_batch(config, config.batch_size)
    parts = config.accumulate_steps
    batch = mapping.put_batch({k: v.reshape(parts, -1, *v.shape[1:]) for k, v in example.items()})
    step = mapping.map_train_step(make_train_step(detector, optimizer))
    compiled = step.lower(state, batch).compile()

    def whole_step() -> jax.Array:
        nonlocal state
        state, metrics = compiled(state, batch)
        return metrics["loss"]

    full = measure.seconds(whole_step, repeats)
    inputs, loss = _share(config, detector, example, mapping.mesh.size, repeats)
    images = config.batch_size
    work = measure.gflop(compiled) * mapping.mesh.size / images
    if parts > 1 and jax.default_backend() != "cpu":
        work *= parts  # XLA counts the body of a loop once
    per_device = images / full / mapping.mesh.size
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
        flags.FLAGS.json,
    )


def _share(
    config, detector: Detector, example: dict, devices: int, repeats: int
) -> tuple[float, float]:
    """Seconds on one device for its part of the batch: inputs, and the loss with its gradient."""
    local = config.batch_size // config.accumulate_steps // devices
    batch = jax.device_put({k: v[:local] for k, v in example.items()})
    keys = example_keys(config.seed, 0, jnp.arange(local))
    prepare = jax.jit(lambda batch, keys: detector.inputs(batch, keys))
    _, targets = prepare(batch, keys)
    inputs = measure.seconds(lambda: prepare(batch, keys), repeats)

    anchors = len(detector.anchors)
    logits = jax.random.normal(jax.random.key(0), (local, anchors, len(CLASSES) + 1))
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
