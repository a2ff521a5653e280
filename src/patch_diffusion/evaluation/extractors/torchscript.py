"""Feature extractors stored as TorchScript files."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.extractors.extractor import Extractor
from patch_diffusion.evaluation.extractors.weights import digest_of


def is_torchscript(path: Path) -> bool:
    """True if a file is a TorchScript archive: a zip file with code next to the tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.partition("/")[2].startswith("code/") for name in archive.namelist())


def torchscript(path: Path, device: torch.device | str = "cpu") -> Extractor:
    """Open a TorchScript module that maps uint8 images (n, 3, h, w) to features (n, d) as a feature extractor.

    If its forward has an argument ``return_features``, as the networks of StyleGAN's metrics do, it is passed as True.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that TorchScript is deprecated, which no user can help
            module = torch.jit.load(str(path), map_location=str(device)).eval()
    except (RuntimeError, OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as TorchScript: {str(error).splitlines()[0]}") from None
    names = {argument.name for argument in module.forward.schema.arguments}  # pyright: ignore[reportFunctionMemberAccess]
    options = {"return_features": True} if "return_features" in names else {}

    def features(images: Tensor) -> Tensor:
        try:
            return module(images.to(device), **options)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"{path} cannot take images {tuple(images.shape)}: {reason}") from None

    return Extractor(path.stem, features, {"kind": "TorchScript", "file": digest_of(path)})
