"""Training: the trainer, its steps, optimizers, weight averages, checkpoints, hardware, and progress display."""
