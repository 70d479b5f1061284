"""Experiments built on the library; the library does not import them."""

import sys

from scratchdet_jax import libraries

if sys.argv[:1] == ["-m"]:  # Python imports this package before the module that -m names
    libraries.hide_libtpu()
