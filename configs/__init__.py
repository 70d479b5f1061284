"""Recipes: one small file each; every default and its meaning stands in common.py."""
