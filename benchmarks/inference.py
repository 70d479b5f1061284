"""Measures the speed of inference.

python -m benchmarks.inference --config=configs/voc300.py

Prints images/s at batch 1 and 32 on one device, for the network alone (images to logits and
offsets) and with softmax, box decoding and NMS. The weights are random, so the scores are flat and
NMS sees the largest possible number of candidates: an upper bound for a trained detector.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks import measure
from scratchdet_jax import cli
from scratchdet_jax.detector import build_detector


def define_flags() -> flags.FlagValues:
    """Returns the flags besides the config."""
    values = flags.FlagValues()
    flags.DEFINE_integer(
        "repeats", 5, "Timed calls of each part; the median is reported.", flag_values=values
    )
    flags.DEFINE_multi_integer("batch", [1, 32], "Batch sizes.", flag_values=values)
    flags.DEFINE_string("json", None, "Also write the figures to this file.", flag_values=values)
    return values


def main(argv: Sequence[str]) -> None:
    """Parses the command line and measures."""
    values = define_flags()
    config = cli.parse_config(argv, values)
    detector = build_detector(config, measure.CLASSES)
    side = config.image_size
    variables = jax.jit(
        lambda: detector.model.init(
            {"params": jax.random.key(0)}, jnp.zeros((1, side, side, 3)), train=False
        )
    )()
    network = jax.jit(lambda v, x: detector.model.apply(v, x, train=False))
    whole = jax.jit(lambda v, x: detector.detect(v, x))

    rows = []
    for size in values.batch:
        images = 50 * jax.random.normal(jax.random.key(1), (size, side, side, 3))
        compiled = network.lower(variables, images).compile()
        alone = measure.seconds(lambda: compiled(variables, images), values.repeats)  # noqa: B023
        full = measure.seconds(lambda: whole(variables, images), values.repeats)  # noqa: B023
        rows += [
            (f"batch {size}: network, images/s", size / alone),
            (f"batch {size}: with decode and NMS, images/s", size / full),
            (f"batch {size}: share of decode and NMS", 1 - alone / full),
        ]
    rows.append(("GFLOP per image, forward", measure.gflop(compiled) / size))
    measure.report(f"inference, {config.name}, {config.model.dtype}", rows, values.json)


if __name__ == "__main__":
    cli.run(main)
