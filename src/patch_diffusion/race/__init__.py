"""Several trainings at equal time."""
