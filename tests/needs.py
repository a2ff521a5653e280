"""Libraries that only some tests need: each is an extra of this package, or is installed by the extra test."""

from typing import Any

import pytest


def need(library: str, extra: str = "test", minversion: str | None = None) -> Any:
    """Import and return a library, or skip the test, or the file if called at its top, and say what installs it."""
    reason = f"{library} is not installed: pip install 'patch_diffusion[{extra}]'"
    return pytest.importorskip(library, minversion, reason=reason)
