"""Training: optimiser, step, loop, starting from another run, and saving a diverged step."""
