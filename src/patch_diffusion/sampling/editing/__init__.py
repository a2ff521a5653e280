"""Editing and restoration of images: sampling under the condition of a measurement."""
