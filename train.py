"""Trains and evaluates a detector: python train.py --config=configs/voc300.py.

Run the same command again to resume. Any field of the config can be overridden:
--config.batch_size=256 --config.optimizer.learning_rate=0.02
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from scratchdet_jax import cli

flags.DEFINE_string("workdir", None, "Where the run lives; default: runs/<recipe>.")


def main(argv: Sequence[str]) -> None:
    """Parses the command line and trains."""
    config = cli.parse_config(argv)
    from scratchdet_jax.training.loop import train_and_evaluate  # after the flags: JAX is slow

    train_and_evaluate(config, Path(flags.FLAGS.workdir or f"runs/{config.name}"))


if __name__ == "__main__":
    cli.run(main)
