"""Feature extractors, one module for each kind, and `open_extractor`, which chooses among them."""
