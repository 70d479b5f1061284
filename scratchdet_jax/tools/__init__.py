"""Command-line tools: python -m scratchdet_jax.tools.NAME."""
