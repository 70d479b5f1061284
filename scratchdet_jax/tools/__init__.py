"""Command-line tools: python -m scratchdet_jax.tools.NAME."""

import sys

from scratchdet_jax import stopping

if sys.argv[:1] == ["-m"]:  # Python imports this package before the module named after -m
    stopping.listen()
