"""Benchmarks: python -m benchmarks.NAME."""

from scratchdet_jax import cli

cli.hide_libtpu()  # before the module that is named after -m imports JAX
