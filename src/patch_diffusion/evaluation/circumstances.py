"""The hardware, versions and git commit of a measurement, recorded so that it can be repeated."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from patch_diffusion.devices import device_name, system_name
from patch_diffusion.version import __version__


def circumstances(device: torch.device) -> dict[str, Any]:
    """Return device, threads, system, versions and git commit (None without checkout) as a dict for JSON."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "system": system_name(),
        "versions": {
            "python": platform.python_version(),
            "patch_diffusion": __version__,
            **{name: version(name) for name in ("torch", "numpy")},
        },
        "commit": _commit(),
    }


def _commit() -> str | None:
    here = Path(__file__)

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(here.parent), *words], capture_output=True, text=True, timeout=10)

    try:
        found = git("describe", "--always", "--abbrev=12", "--dirty", "--exclude=*")
        # The package may be installed inside another project's checkout, whose commit says nothing about it.
        tracked = git("ls-files", "--error-unmatch", here.name)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if not found.returncode and not tracked.returncode else None
