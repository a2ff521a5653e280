"""Inspection of a data set: its statistics, broken files, duplicates, and a suggested resolution."""
