"""The hardware a run is on."""

from __future__ import annotations

import torch

from patch_diffusion.config import Engine
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError


def start(options: Engine) -> torch.device:
    """Set the number of threads and choose the device."""
    if options.threads is not None:
        if options.threads < 1:
            raise InputError(f"engine.threads is at least 1, not {options.threads}")
        torch.set_num_threads(options.threads)
    return choose_device(options.device)


def place(denoiser: Denoiser, device: torch.device) -> Denoiser:
    """Move a denoiser to a device; its convolution weights lie channels last, as the patches do."""
    return denoiser.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; a GPU where there is one for "auto"."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"the device '{name}' is not there: take auto, cpu, cuda, cuda:1 or mps") from None
    return device
