"""In and out of other tools."""
