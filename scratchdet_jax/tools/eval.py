"""Evaluates a trained detector.

python eval.py --workdir=runs/voc300

The config of the run is used. Any field can be overridden, such as
--config.data.eval=voc/2007:test or --config.eval.metric=voc_area.

The results of the best checkpoint on the run's own eval split are in WORKDIR/eval. Those of another
split, metric or checkpoint are in a folder of their own, which is named after it
(WORKDIR/eval-voc_2007_test, eval-voc_area, eval-step_50). If the best checkpoint has changed since,
its results replace the earlier ones, and a line names these. A folder named with --output that
holds other results is refused, unless --overwrite is given. The last line says where the results
are.
"""

from collections.abc import Sequence

from absl import flags

from scratchdet_jax import cli
from scratchdet_jax.errors import UserError
from scratchdet_jax.paths import run_path, user_path


def define_flags() -> flags.FlagValues:
    """Returns the flags besides the config."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "The run: the --workdir of its training.", values)
    flags.DEFINE_string("checkpoint", "best", "best, latest or a step.", values)
    flags.DEFINE_string(
        "output", None, "Folder for the results; default: WORKDIR/eval or eval-….", values
    )
    flags.DEFINE_bool("overwrite", False, "Replace other results in the --output folder.", values)
    cli.define_process_flags(values)
    return values


def main(argv: Sequence[str]) -> None:
    """Parses the command line and evaluates."""
    values = cli.parse_early(argv, define_flags())
    if not values.workdir:
        raise UserError("name the run to evaluate: --workdir=runs/NAME")
    from scratchdet_jax.parallel import processes

    processes.start(cli.process_settings(values))
    from scratchdet_jax.reports.results import evaluate_run
    from scratchdet_jax.run.open import open_run

    run = open_run(run_path(values.workdir), values.checkpoint)
    config = cli.parse_config(argv, define_flags(), run.info.config)
    output = user_path(values.output) if values.output else None
    evaluate_run(run, config, output, values.overwrite)


if __name__ == "__main__":
    cli.run(main)
