"""Weight files of feature extractors: reading them without running code, checking and identifying them."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from patch_diffusion.errors import InputError
from patch_diffusion.files import read_tensors


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a safetensors file or a file of ``torch.save``, without running code in it.

    Raises:
        InputError: the file is missing, is damaged, or holds something else.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} holds no weights that can be read without running code in it: {reason}") from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise InputError(f"{path} holds no tensors by name: save a state_dict, or a safetensors file")
    return {str(name): tensor for name, tensor in content.items()}


def check_shapes(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], kind: str) -> None:
    """Raise InputError if names, shapes or values of tensors do not suit a network, naming the first bad tensor."""
    for name, shape in expected.items():
        if name not in found:
            raise InputError(f"{path} is not {kind}: its tensor {name} is missing")
        if tuple(found[name].shape) != tuple(shape):
            raise InputError(
                f"{path} is not {kind}: its tensor {name} is {tuple(found[name].shape)}, and {tuple(shape)} is expected"
            )
        if not found[name].isfinite().all():
            raise InputError(f"{path} is damaged: its tensor {name} has values that are not finite numbers")


def digest_of(path: Path) -> str:
    """Return a digest of the content of a file, in hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
