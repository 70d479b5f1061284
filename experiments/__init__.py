"""Experiments built on the library; the library does not import them."""

from scratchdet_jax import cli

cli.hide_libtpu()  # before the module that is named after -m imports JAX
