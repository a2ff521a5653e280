"""Checkpoints: the state of a training run on disk, whole or in shards, written in the background."""
