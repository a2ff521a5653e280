"""Noise levels to sample at, from high to low."""

from __future__ import annotations

import torch
from torch import Tensor

from patch_diffusion.errors import InputError


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """``steps`` levels from sigma_max to sigma_min, even in sigma^(1/rho), then 0: ``(steps + 1,)`` float64.

    EDM, arXiv 2206.00364, equation 5.
    """
    if steps < 1:
        raise InputError(f"sampling takes at least 1 step, not {steps}")
    if not 0 < sigma_min <= sigma_max:
        raise InputError(f"noise levels must be 0 < sigma_min <= sigma_max, not {sigma_min} and {sigma_max}")
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])
