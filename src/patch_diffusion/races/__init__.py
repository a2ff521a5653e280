"""Races: several trainings at equal time."""
