"""The versions, devices and optional libraries of this installation, as a report of a fault needs them."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from typing import Any

import torch
from packaging.requirements import Requirement

from patch_diffusion.devices import device_name, system_name
from patch_diffusion.version import __version__

_OFTEN = ("serve", "data", "export", "hub", "track", "evaluation", "likelihood", "schedule-free")
"""The extras that users install most, which come first."""

_FOR_DEVELOPERS = {"dev", "docs", "lint", "test"}
"""The extras that are for work on this package, and are left out."""


def environment() -> dict[str, Any]:
    """Describe this installation as a dict that names no user, machine or folder.

    Returns:
        A dict that JSON can store: ``system``; ``versions`` of patch_diffusion, of Python and of each installed library
        that the package or an extra for its users names; ``devices``, each with ``device``, ``name``, and ``threads``
        (CPU) or ``memory`` (GPU, in bytes); ``missing``: the libraries that are absent or too old, by extra and for the
        package itself.

    >>> environment()["missing"]["patch_diffusion"]
    []
    """
    needed = _requirements()
    installed = {each.name: _installed(each.name) for group in needed.values() for each in group}
    return {
        "system": system_name(),
        "versions": {
            "patch_diffusion": __version__,
            "python": platform.python_version(),
            **{name: found for name, found in sorted(installed.items()) if found},
        },
        "devices": list(_devices()),
        "missing": {
            name: [lack for each in group if (lack := _lack(each, installed[each.name]))]
            for name, group in needed.items()
        },
    }


def _requirements() -> dict[str, list[Requirement]]:
    """Return the libraries that the package and each of its extras need on this system, as its metadata has them."""

    def applies(each: Requirement, extra: str) -> bool:
        return each.marker is None or each.marker.evaluate({"extra": extra})

    every = [Requirement(text) for text in requires("patch_diffusion") or ()]
    core = [each for each in every if applies(each, "")]
    given = metadata("patch_diffusion").get_all("Provides-Extra") or ()
    extras = sorted(set(given) - _FOR_DEVELOPERS, key=lambda extra: _OFTEN.index(extra) if extra in _OFTEN else 99)
    of_extras = {extra: [each for each in every if each not in core and applies(each, extra)] for extra in extras}
    return {"patch_diffusion": core, **of_extras}


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _lack(needed: Requirement, found: str | None) -> str:
    """Return the library and range of versions that are needed; an empty string if the installed version is in it."""
    if found and needed.specifier.contains(found, prereleases=True):
        return ""
    return f"{needed.name}{needed.specifier}" + (f" ({found} is installed)" if found else "")


def _devices() -> Iterator[dict[str, Any]]:
    cpu, mps = torch.device("cpu"), torch.device("mps")
    yield {"device": "cpu", "name": device_name(cpu), "threads": torch.get_num_threads()}
    for place in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(place)
        yield {"device": f"cuda:{place}", "name": facts.name, "memory": facts.total_memory}
    if torch.backends.mps.is_available():
        yield {"device": "mps", "name": device_name(mps), "memory": torch.mps.recommended_max_memory()}
