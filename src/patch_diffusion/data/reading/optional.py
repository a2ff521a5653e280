"""Libraries that are needed for some sources only."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from patch_diffusion.errors import InputError


def need(library: str, source: str) -> Any:
    """The library, or an error that says how it is installed."""
    try:
        return import_module(library)
    except ImportError:
        raise InputError(f"reading {source} needs {library}: pip install 'patch_diffusion[data]'") from None
