"""Recipes, one small file each; scratchdet_jax/config/defaults.py has all fields and defaults."""
