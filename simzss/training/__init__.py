"""The training run: module, optimiser, checkpoints, and the function that starts it."""
