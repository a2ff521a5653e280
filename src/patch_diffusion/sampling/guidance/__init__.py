"""Guidance: functions that wrap a denoise and return another denoise."""
