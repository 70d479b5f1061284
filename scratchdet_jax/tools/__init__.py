"""Command-line tools: scratchdet NAME, or python -m scratchdet_jax.tools.NAME."""

import os
import sys

from scratchdet_jax import stopping

# Python imports this package before the module that is named after -m, and before the entry point.
if sys.argv and os.path.basename(sys.argv[0]) in ("-m", "scratchdet"):
    stopping.listen()

    from scratchdet_jax import cli

    cli.hide_libtpu()  # before the module imports JAX
