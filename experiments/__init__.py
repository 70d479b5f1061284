"""Experiments built on the library; the library does not import them."""

import sys

from scratchdet_jax import cli

if sys.argv[:1] == ["-m"]:
    cli.hide_libtpu()  # before the module that is named after -m imports JAX
