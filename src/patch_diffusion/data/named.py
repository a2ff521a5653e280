"""Names of data sets: those that are no paths, and the refusal of a path at which there is nothing."""

from __future__ import annotations

from patch_diffusion.errors import InputError, check_library
from patch_diffusion.files import user_path

DIGITS = "digits"
_LIBRARIES = {".h5": "h5py", ".hdf5": "h5py", ".zarr": "zarr"}
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
    library = "datasets" if source.startswith(HUB) else _LIBRARIES.get(user_path(source).suffix.lower())
    if library is not None:
        check_library(library, "data", f"reading {source}")


def check_labels(labels: str | None, source: str, option: str = "data.labels") -> None:
    """Raise InputError if labels are to be read from a CSV file that is neither there nor in the folder of images."""
    folder = user_path(source)
    if labels is None or not labels.lower().endswith(".csv") or not folder.is_dir():
        return
    if not user_path(labels).is_file() and not (folder / labels).is_file():
        raise no_labels(labels, source, option)


def no_labels(file: str, source: str, option: str = "data.labels") -> InputError:
    """Return the error for a file of labels, or of another option, that is not there."""
    what = option.partition(".")[2]
    return InputError(f"there is no file of {what} at {file}, nor in {source}", option=option)
