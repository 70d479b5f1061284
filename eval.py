"""Evaluates a trained detector: see python eval.py --help."""

from scratchdet_jax import stopping

if __name__ == "__main__":
    stopping.listen()  # before the slow imports
    from scratchdet_jax import cli
    from scratchdet_jax.tools.eval import main

    cli.run(main)
