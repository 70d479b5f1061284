"""Command-line tools for single-shot detectors trained from random initialisation.

scratchdet COMMAND [options], or python -m scratchdet_jax.tools COMMAND [options]
"""

import difflib
import importlib
from collections.abc import Sequence

from scratchdet_jax import cli
from scratchdet_jax.errors import UserError

# Titles of the modules of this package that have `main(argv)`, in the order of work.
COMMANDS = {
    "train": "Trains and evaluates a detector.",
    "eval": "Evaluates a trained detector.",
    "predict": "Detects objects in photos, folders and videos, or in the run's eval split.",
    "export": "Exports a trained detector to one file that runs without this package.",
    "prepare": "Checks a data set and prepares it for training.",
    "doctor": "Examines a data set before training.",
    "score": "Scores detection files against annotations.",
    "report": "Reports on a trained run, or compares several, on one page.",
    "plot": "Draws the curves of runs from their metrics.jsonl.",
    "summary": "Describes the network of a recipe.",
    "forecast": "Compiles a run for absent accelerators, and says what to expect of them.",
    "landscape": "Measures how smooth the loss is along its gradient.",
    "import_torch": "Imports PyTorch weights into a run.",
    "replay": "Repeats a diverged training step and reports what is not finite.",
}
_PACKAGES = ("predict",)  # whose `main` is in __main__


def main(argv: Sequence[str]) -> None:
    """Runs the command that argv[1] names; lists the commands if there is none."""
    program, (name, *rest) = argv[0], argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        width = max(map(len, COMMANDS))
        print(f"usage: {program} COMMAND [options]\n\ncommands:")
        for known, title in COMMANDS.items():
            print(f"  {known:<{width}}  {title}")
        print(f"\n{program} COMMAND --help describes a command.")
        return
    if name not in COMMANDS:
        close = " or ".join(difflib.get_close_matches(name, COMMANDS))
        hint = f"did you mean {close}?" if close else f"the commands are {', '.join(COMMANDS)}"
        raise UserError(f"there is no command {name!r}: {hint}")
    module = f"{name}.__main__" if name in _PACKAGES else name
    command = importlib.import_module(f"{__package__}.{module}")
    cli.run(command.main, [f"{program} {name}", *rest])


if __name__ == "__main__":
    cli.run(main)
