"""Is a model good, and which of several is better."""
