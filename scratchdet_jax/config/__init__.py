"""The config of a run: defaults, fields, validation."""
