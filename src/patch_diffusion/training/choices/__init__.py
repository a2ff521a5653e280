"""Choices of options that the user did not give, by images, hardware and budget."""
