"""The refusal of an export that cannot be right, before the libraries are imported that take long."""

from __future__ import annotations

import re
from pathlib import Path

from patch_diffusion.errors import InputError, check_library
from patch_diffusion.files import check_writable, user_path

ONNX_LIBRARIES = ("onnxscript", "onnxruntime")

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def check_request(out: Path, to: str, *, license: str | None, push_to: str | None, public: bool) -> None:
    """Raise an `InputError` if the folder is in use, a library is missing, or a licence or repository is none."""
    if license is not None and not _LICENSE.fullmatch(license):
        raise InputError(f"a licence is given by its short name, such as apache-2.0 or cc-by-4.0, not as '{license}'")
    if push_to is not None:
        _check_repository(push_to)
    elif public:
        raise InputError("public says how a repository is made: name one by push OWNER/NAME")
    place = user_path(out)
    if place.exists() and not place.is_dir():
        raise InputError(f"{place} is a file: give a folder for the export")
    if place.is_dir() and any(place.iterdir()):
        raise InputError(f"{place} is not empty: choose a new or an empty folder")
    check_writable(place)
    for library in ONNX_LIBRARIES if to == "onnx" else ():
        check_library(library, "export", "an ONNX file")


def _check_repository(name: str) -> None:
    if not _REPOSITORY.fullmatch(name) or ".." in name or "--" in name:
        raise InputError(f"a repository is given as OWNER/NAME, not '{name}'")
    check_library("huggingface_hub", "export", "--push")
