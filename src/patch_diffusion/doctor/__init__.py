"""Measures of the hardware that training runs on: what works, how fast it is, and how fast it could be."""
