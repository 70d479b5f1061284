"""Runs a program in this process, as its command line does."""

from scratchdet_jax import cli


def exit_status(main, *arguments):
    """The exit status of a program's `main` on a command line."""
    try:
        cli.run(main, ["program", *map(str, arguments)])
    except SystemExit as stopped:
        return stopped.code
    return 0
