"""The config of a run: defaults, recipes, validation, scales of multi-scale testing."""
