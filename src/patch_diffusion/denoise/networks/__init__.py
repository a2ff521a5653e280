"""Networks; each in one file without package imports, so that an export can carry it."""
