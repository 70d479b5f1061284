"""Trains and evaluates a detector: see python train.py --help."""

from scratchdet_jax import cli
from scratchdet_jax.tools.train import main

if __name__ == "__main__":
    cli.run(main)
