"""Training: state, optimiser, step, device mapping, checkpoints, logs and the loop."""
