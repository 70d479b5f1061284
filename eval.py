"""Evaluates a trained detector: see python eval.py --help."""

from scratchdet_jax import cli
from scratchdet_jax.tools.eval import main

if __name__ == "__main__":
    cli.run(main)
