"""Checks of a data set before training; run as `python -m scratchdet_jax.tools.doctor`."""
