"""Command-line tools: scratchdet NAME, or python -m scratchdet_jax.tools.NAME."""

import sys

from scratchdet_jax import libraries, stopping

if sys.argv[:1] == ["-m"]:  # Python imports this package before the module that -m names
    stopping.listen()
    libraries.hide_libtpu()
