"""Checks of a data set before training; run as `scratchdet doctor`."""
