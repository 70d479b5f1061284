"""ScratchDet in JAX: single-shot object detectors trained from random initialisation."""

__version__ = "0.1.0"
