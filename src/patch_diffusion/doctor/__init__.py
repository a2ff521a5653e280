"""The doctor: what a machine is, what of this package works on it, and how fast; one file for each part of it."""
