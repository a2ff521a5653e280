"""A run on disk: its folder, lock, log, checkpoints that stay, model, and pages."""
