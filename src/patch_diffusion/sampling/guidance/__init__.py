"""Guidance: a denoise around a denoise."""
