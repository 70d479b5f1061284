"""The command `scratchdet`, also as `python -m scratchdet_jax`."""

from scratchdet_jax import stopping


def start() -> None:
    """Runs the command that the command line names."""
    stopping.listen()  # before the slow imports
    from scratchdet_jax import cli
    from scratchdet_jax.tools.__main__ import main

    cli.run(main)


if __name__ == "__main__":
    start()
