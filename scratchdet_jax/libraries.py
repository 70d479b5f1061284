"""Keeps libraries quiet, and JAX from loading what the machine cannot use."""

import logging as python_logging
import sys
import warnings
from pathlib import Path

from absl import logging


def quiet() -> None:
    """Silences what libraries log about failures that reach the program as exceptions, too.

    A full disk makes Orbax log every array that it cannot write, from several threads and event
    loops, in thousands of lines. The program reports the same failure in one sentence.
    """
    logging.set_verbosity(logging.FATAL)
    logging.set_stderrthreshold(logging.FATAL)
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    # TensorStore answers to an event loop that such a failure has closed.
    uncaught, unraisable = sys.excepthook, sys.unraisablehook
    sys.excepthook = lambda kind, value, traceback: (
        None if _is_closed_loop(value) else uncaught(kind, value, traceback)
    )
    sys.unraisablehook = lambda args: None if _is_closed_loop(args.exc_value) else unraisable(args)


def hide_libtpu() -> None:
    """Hides the TPUs' library from JAX on a machine without TPUs, where the tests need it.

    JAX would load it at every start to look for TPUs.
    """
    google = "0x1ae0"
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    if not any(vendor.read_text().strip() == google for vendor in vendors):
        # None, which the annotation of sys.modules does not allow: an import then fails.
        sys.modules.setdefault("libtpu", None)  # type: ignore[arg-type]


def _is_closed_loop(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
