"""Noise levels to sample at, from high to low.

Each schedule is ``steps`` levels from sigma_max to sigma_min, then 0: ``(steps + 1,)`` float64. They differ in where
the steps are small.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from patch_diffusion.denoise.process import VP
from patch_diffusion.errors import InputError


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Even in sigma^(1/rho): the larger rho, the more of them are low (EDM, arXiv 2206.00364, equation 5).

    Args:
        steps: noise levels before the 0, at least 1.
        sigma_min, sigma_max: the lowest, above 0, and the highest.
        rho: above 0.

    Returns:
        ``(steps + 1,)`` float64, from sigma_max to sigma_min, then 0.

    Raises:
        InputError: numbers out of these ranges.

    >>> karras_sigmas(3, 1.0, 4.0, rho=2.0)
    tensor([4.0000, 2.2500, 1.0000, 0.0000], dtype=torch.float64)
    """
    ramp = _ramp(steps, sigma_min, sigma_max, rho)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _exactly((high + ramp * (low - high)) ** rho, sigma_min, sigma_max)


def vp_sigmas(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Even in the time of the variance-preserving process (EDM, table 1; score-SDE, arXiv 2011.13456).

    Args:
        steps: noise levels before the 0, at least 1.
        sigma_min, sigma_max: the lowest, above 0, and the highest.

    Returns:
        ``(steps + 1,)`` float64, from sigma_max to sigma_min, then 0.

    Raises:
        InputError: numbers out of these ranges.

    >>> vp_sigmas(18, 0.002, 80.0).shape
    torch.Size([19])
    """
    ramp = _ramp(steps, sigma_min, sigma_max)
    process = VP()
    last, first = process.time(torch.tensor([sigma_min, sigma_max], dtype=torch.float64))
    return _exactly(process.sigma(first + ramp * (last - first)), sigma_min, sigma_max)


def ve_sigmas(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Geometric in sigma^2, the time of the variance-exploding process (EDM, table 1; score-SDE, arXiv 2011.13456).

    Args:
        steps: noise levels before the 0, at least 1.
        sigma_min, sigma_max: the lowest, above 0, and the highest.

    Returns:
        ``(steps + 1,)`` float64, from sigma_max to sigma_min, then 0.

    Raises:
        InputError: numbers out of these ranges.

    >>> ve_sigmas(3, 1.0, 4.0)
    tensor([4., 2., 1., 0.], dtype=torch.float64)
    """
    ramp = _ramp(steps, sigma_min, sigma_max)
    return _exactly(sigma_max * (sigma_min / sigma_max) ** ramp, sigma_min, sigma_max)


def exponential_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 1.0) -> Tensor:
    """Even in ln(sigma), as `ve_sigmas`, where rho is 1; ln(sigma) falls as (1 - i / (steps - 1))^rho.

    A rho above 1 has more low levels, one below 1 more high ones.

    Args:
        steps: noise levels before the 0, at least 1.
        sigma_min, sigma_max: the lowest, above 0, and the highest.
        rho: above 0.

    Returns:
        ``(steps + 1,)`` float64, from sigma_max to sigma_min, then 0.

    Raises:
        InputError: numbers out of these ranges.

    >>> exponential_sigmas(3, 1.0, 16.0, rho=2.0)
    tensor([16.,  2.,  1.,  0.], dtype=torch.float64)
    """
    ramp = _ramp(steps, sigma_min, sigma_max, rho)
    return _exactly(sigma_min * (sigma_max / sigma_min) ** ((1 - ramp) ** rho), sigma_min, sigma_max)


SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "karras": karras_sigmas,
    "vp": vp_sigmas,
    "ve": ve_sigmas,
    "exponential": exponential_sigmas,
}
"""The schedules by the names that `generate` and ``sample --schedule`` know.

>>> SCHEDULES["karras"](18, 0.002, 80.0).shape
torch.Size([19])
"""


def _ramp(steps: int, sigma_min: float, sigma_max: float, rho: float = 1.0) -> Tensor:
    """``steps`` numbers from 0 to 1."""
    if steps < 1:
        raise InputError(f"sampling takes at least 1 step, not {steps}")
    if not 0 < sigma_min <= sigma_max:
        raise InputError(f"noise levels must be 0 < sigma_min <= sigma_max, not {sigma_min} and {sigma_max}")
    if not rho > 0:
        raise InputError(f"rho is a number above 0, not {rho}")
    return torch.linspace(0, 1, steps, dtype=torch.float64)


def _exactly(sigmas: Tensor, sigma_min: float, sigma_max: float) -> Tensor:
    """From the highest to the lowest without what rounding does to them, then 0."""
    sigmas[-1] = sigma_min
    sigmas[0] = sigma_max  # also of a single one
    return torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])
