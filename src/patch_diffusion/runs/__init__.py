"""Training runs on disk: the run folder, its lock, its log, checkpoint retention, the model, and HTML reports."""
