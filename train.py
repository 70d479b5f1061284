"""Trains and evaluates a detector: see python train.py --help."""

from scratchdet_jax import stopping

if __name__ == "__main__":
    stopping.listen()  # before the slow imports
    from scratchdet_jax import cli
    from scratchdet_jax.tools.train import main

    cli.run(main)
