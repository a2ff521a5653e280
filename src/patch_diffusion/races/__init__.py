"""Races: comparisons of several training configurations (arms) at equal training time."""
