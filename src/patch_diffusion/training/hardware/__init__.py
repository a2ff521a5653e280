"""Devices, processes, memory, and what moves between them."""
