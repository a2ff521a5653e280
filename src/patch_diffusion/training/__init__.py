"""One run: steps, averages, checkpoints, and what the user sees of them."""
