"""The choice of a feature extractor by its kind, a file or a folder. Nothing is ever downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from patch_diffusion.data.reading.cache import FOLDER_VARIABLE, cache_folder
from patch_diffusion.errors import InputError, did_you_mean
from patch_diffusion.evaluation.extractors.dinov2 import dinov2, is_dinov2
from patch_diffusion.evaluation.extractors.extractor import Extractor, as_extractor
from patch_diffusion.evaluation.extractors.inception import FILE, inception, is_inception
from patch_diffusion.evaluation.extractors.mobilenet import is_mobilenet, mobilenet
from patch_diffusion.evaluation.extractors.random_convolutions import random_convolutions
from patch_diffusion.evaluation.extractors.torchscript import is_torchscript, torchscript
from patch_diffusion.evaluation.extractors.weights import read_weights
from patch_diffusion.files import user_path

KINDS = ("random", "inception", "dinov2")


def open_extractor(
    what: str | Path | Extractor | Callable[[Tensor], Tensor] = "random", *, device: torch.device | str = "cpu"
) -> Extractor:
    """Open a feature extractor by its kind or from a file, or wrap a callable as one.

    Args:
        what: one of

            - "random": convolutions with a fixed seed, which need no file;
            - "inception" or "dinov2": the weights in the folder of `extractors_folder`;
            - a file of weights of Inception-v3 or MobileNetV2, known by the names of its tensors, or a TorchScript
              file; a folder with a DINOv2 that transformers saved;
            - any callable from uint8 images (n, c, h, w) to features (n, d), see `Extractor`.
        device: the device of the network; a callable chooses its own.

    Raises:
        InputError: the extractor is unknown or unusable. Nothing is downloaded; the message says which file to bring.

    >>> open_extractor("random").name
    'random'
    """
    if not isinstance(what, str | Path):
        return as_extractor(what)
    if what == "random":
        return random_convolutions(device=device)
    if what == "inception":
        return inception(_brought(FILE, "https://github.com/mseitzer/pytorch-fid/releases", "inception"), device)
    if what == "dinov2":
        return dinov2(_brought("dinov2", "https://huggingface.co/facebook/dinov2-large", "dinov2"), device)
    path = user_path(what)
    if path.is_dir():
        if is_dinov2(path):
            return dinov2(path, device)
        raise InputError(f"{path} is no extractor: give a folder in which transformers saved a DINOv2")
    if not path.exists():
        if path.suffix or len(path.parts) > 1:
            raise InputError(f"there is no extractor at {path}: give a file of weights, or one of {', '.join(KINDS)}")
        raise InputError(f"there is no extractor '{what}'{did_you_mean(str(what), KINDS)}, or give a file")
    if is_torchscript(path):
        return torchscript(path, device)
    weights = read_weights(path)
    if is_inception(set(weights)):
        return inception(path, device)
    if is_mobilenet(weights):
        return mobilenet(path, device)
    first = ", ".join(sorted(weights)[:2]) or "none"
    raise InputError(
        f"{path} holds the weights of no network that is known here (Inception-v3, MobileNetV2; its tensors are "
        f"{first}, ...): save it as TorchScript, or give a callable from Python"
    )


def extractors_folder() -> Path:
    """Return the folder of the weights of "inception" and "dinov2": ``extractors`` in the cache folder."""
    return cache_folder() / "extractors"


def _brought(name: str, source: str, kind: str) -> Path:
    path = extractors_folder() / name
    others = [path.with_suffix(ending) for ending in (".safetensors", ".pt")]
    for candidate in (path, *others):
        if candidate.exists():
            return candidate
    raise InputError(
        f"there are no weights for the extractor {kind}, and nothing is downloaded: bring {name} (from {source}) to "
        f"{extractors_folder()} (in the folder that {FOLDER_VARIABLE} names), or give its path, --extractor PATH"
    )
