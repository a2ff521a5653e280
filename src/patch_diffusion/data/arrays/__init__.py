"""Data sets that are one array of images, in a file or in memory."""
