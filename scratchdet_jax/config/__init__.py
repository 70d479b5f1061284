"""The config of a run: defaults, fields, validation, scales of multi-scale testing."""
