"""The web page: runs to look at, models to sample from and to edit images by, on this machine alone."""
