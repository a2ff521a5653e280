"""Names of data sets: those that are no paths, and the refusal of a path at which there is nothing."""

from __future__ import annotations

from patch_diffusion.errors import InputError
from patch_diffusion.files import user_path

DIGITS = "digits"
HUB, SHARDS = "hf:", "wds:"
"""Prefixes of data sets of the Hugging Face library, and of shards."""


def prefix_of(source: str) -> str | None:
    """Return the prefix of a data set that is no path, or None."""
    return next((prefix for prefix in (HUB, SHARDS) if source.startswith(prefix)), None)


def check_source(source: str, what: str = "data") -> None:
    """Raise InputError if the name of a data set is a path at which there is nothing."""
    if source != DIGITS and prefix_of(source) is None and not user_path(source).exists():
        raise InputError(
            f"there is no {what} at {source}: give a folder or a zip of images, an array (.npy, .npz, .h5, .zarr), "
            "hf:NAME, wds:SHARDS, or digits",
            option="data.source",
        )
