"""A page on a trained run, or on several side by side."""
