"""Races: several trainings, compared at equal training time."""
