"""Images in one array."""
