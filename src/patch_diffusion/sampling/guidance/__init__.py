"""Guidance: functions that take a denoise function and return another one, which is guided."""
