"""Speed of inference: python benchmarks/inference.py --config=configs/voc300.py.

Images/s at batch 1 and 32 on one device: the network alone (images to logits and offsets), and
with softmax, box decoding and NMS. The weights are random, so scores are flat and NMS sees as
many candidates as it ever can: the slow end of what a trained detector needs.
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
from scratchdet_jax.detector import build_detector

CLASSES = tuple(f"class {i}" for i in range(1, 21))

flags.DEFINE_integer("repeats", 5, "Timed calls of each part; the median counts.")
flags.DEFINE_multi_integer("batch", [1, 32], "Batch sizes.")
flags.DEFINE_string("json", None, "Also write the figures to this file.")


def main(argv: Sequence[str]) -> None:
    """Parses the command line and measures."""
    config = cli.parse_config(argv)
    detector = build_detector(config, CLASSES)
    side = config.image_size
    variables = jax.jit(
        lambda: detector.model.init(
            {"params": jax.random.key(0)}, jnp.zeros((1, side, side, 3)), train=False
        )
    )()
    network = jax.jit(lambda v, x: detector.model.apply(v, x, train=False))
    whole = jax.jit(lambda v, x: detector.detect(v, x))

    rows = []
    for size in flags.FLAGS.batch:
        images = 50 * jax.random.normal(jax.random.key(1), (size, side, side, 3))
        compiled = network.lower(variables, images).compile()
        alone = measure.seconds(lambda: compiled(variables, images), flags.FLAGS.repeats)  # noqa: B023
        full = measure.seconds(lambda: whole(variables, images), flags.FLAGS.repeats)  # noqa: B023
        rows += [
            (f"batch {size}: network, images/s", size / alone),
            (f"batch {size}: with decode and NMS, images/s", size / full),
            (f"batch {size}: share of decode and NMS", 1 - alone / full),
        ]
    rows.append(("GFLOP per image, forward", measure.gflop(compiled) / size))
    measure.report(f"inference, {config.name}, {config.model.dtype}", rows, flags.FLAGS.json)


if __name__ == "__main__":
    cli.run(main)
