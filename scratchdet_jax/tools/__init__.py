"""Command-line tools: scratchdet NAME, or python -m scratchdet_jax.tools.NAME."""
