"""Trains and evaluates a detector.

python train.py --config=configs/voc300.py

Run the same command again to resume: training continues from the last checkpoint, and a workdir of
another config is refused. The exit status is 75 after SIGTERM (all steps are saved) and 69 if
nothing has moved for config.stall_seconds; after both the same command resumes. Any field of the
config can be overridden:
--config.batch_size=256 --config.optimizer.learning_rate=0.02
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from scratchdet_jax import cli
from scratchdet_jax.run.preemption import Preemption

flags.DEFINE_string("workdir", None, "The folder of the run; default: runs/<recipe>.")
cli.define_process_flags()
flags.DEFINE_enum(
    "resume",
    "auto",
    ["auto", "force"],
    "force: resume even if the config differs in fields that change the result.",
)


def main(argv: Sequence[str]) -> None:
    """Parses the command line and trains."""
    with Preemption() as preemption:  # handles SIGTERM while JAX is being imported, too
        config = cli.parse_config(argv)
        from scratchdet_jax.parallel import processes

        processes.start(argv)
        from scratchdet_jax.training.loop import train_and_evaluate

        workdir = Path(flags.FLAGS.workdir or f"runs/{config.name}")
        train_and_evaluate(config, workdir, flags.FLAGS.resume, preemption)


if __name__ == "__main__":
    cli.run(main)
