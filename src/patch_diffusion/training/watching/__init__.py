"""Monitoring of a run while it trains: sample pictures, held-out loss, metrics of samples, and experiment trackers."""
