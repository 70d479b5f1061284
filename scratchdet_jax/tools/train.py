"""Trains and evaluates a detector.

python train.py --config=configs/voc300.py

Run the same command again to resume: training continues from the last checkpoint, and a workdir of
another config is refused. Ctrl-C and SIGTERM finish and save the current step; a second Ctrl-C
stops at once. The exit status is 130 after Ctrl-C, 75 after SIGTERM, and 69 if nothing has moved
for config.stall_seconds; after each the same command resumes. Any field of the config can be
overridden:
--config.batch_size=256 --config.optimizer.learning_rate=0.02
"""

from collections.abc import Sequence

from absl import flags

from scratchdet_jax import cli, stopping
from scratchdet_jax.paths import run_path


def define_flags() -> flags.FlagValues:
    """Returns the flags besides the config."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "The folder of the run; default: runs/<recipe>.", values)
    cli.define_process_flags(values)
    flags.DEFINE_enum(
        "resume",
        "auto",
        ["auto", "force"],
        "force: resume even if the config differs in fields that change the result.",
        values,
    )
    return values


def main(argv: Sequence[str]) -> None:
    """Parses the command line and trains."""
    stopping.resumable(terminable=True)
    values = define_flags()
    config = cli.parse_config(argv, values)
    from scratchdet_jax.parallel import processes

    processes.start(cli.process_settings(values))
    from scratchdet_jax.training.loop import train_and_evaluate

    workdir = run_path(values.workdir or f"runs/{config.name}")
    train_and_evaluate(config, workdir, values.resume)


if __name__ == "__main__":
    cli.run(main)
