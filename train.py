"""Trains and evaluates a detector: python train.py --config=configs/voc300.py.

Run the same command again to resume; it goes on where the last checkpoint was written, and refuses
a workdir of another config. Exit status 75: stopped by SIGTERM, all steps saved; 69: nothing moved
for config.stall_seconds. After both the same command goes on. Any field of the config can be
overridden:
--config.batch_size=256 --config.optimizer.learning_rate=0.02
"""

from scratchdet_jax import stopping

if __name__ == "__main__":
    stopping.listen()  # before the slow imports

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from scratchdet_jax import cli

flags.DEFINE_string("workdir", None, "Where the run lives; default: runs/<recipe>.")
cli.define_process_flags()
flags.DEFINE_enum(
    "resume",
    "auto",
    ["auto", "force"],
    "force: resume even if the config differs in what changes the result.",
)


def main(argv: Sequence[str]) -> None:
    """Parses the command line and trains."""
    stopping.listen().terminable = True
    config = cli.parse_config(argv)
    from scratchdet_jax.parallel import processes

    processes.start(argv)
    from scratchdet_jax.training.loop import train_and_evaluate

    workdir = Path(flags.FLAGS.workdir or f"runs/{config.name}")
    train_and_evaluate(config, workdir, flags.FLAGS.resume)


if __name__ == "__main__":
    cli.run(main, advice="run the same command to resume")
