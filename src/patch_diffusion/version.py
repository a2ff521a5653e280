"""The version of the package, in a module without imports, so that all others can record it."""

__version__ = "0.2.0"
