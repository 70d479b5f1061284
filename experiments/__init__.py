"""Experiments built on the library; the library does not import them."""
