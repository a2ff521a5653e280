"""Images that are files, or as good as files: found, opened and brought to one kind."""
