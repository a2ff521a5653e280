"""Guidance away from a weaker denoise function, whatever makes it the weaker one.

The weaker one is the same network without the class in classifier-free guidance (Ho and Salimans, arXiv 2207.12598),
an earlier or smaller network for autoguidance (Karras et al., arXiv 2406.02507), or the network on `crops`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated as Float

from torch import Tensor

from patch_diffusion.errors import InputError, about, finite_number
from patch_diffusion.sampling.step import Denoise


def extrapolate(denoise: Denoise, weaker: Denoise, scale: float) -> Denoise:
    """Return D_w + scale (D - D_w) as a denoise function. A scale of 1 is no guidance, 0 the weaker function alone.

    >>> guided = extrapolate(lambda noisy, sigma: noisy, lambda noisy, sigma: noisy - 1, 3.0)
    >>> guided(torch.zeros(1), torch.ones(()))
    tensor([2.])
    """

    def guided(noisy: Tensor, sigma: Tensor) -> Tensor:
        without = weaker(noisy, sigma)
        return without + scale * (denoise(noisy, sigma) - without)

    return guided


def extrapolate_each(denoise: Denoise, weaker: Mapping[str, Denoise], scales: Mapping[str, float]) -> Denoise:
    """Return D + sum_i (scale_i - 1) (D - D_i) as a denoise function, where D_i is the function without condition i.

    With one condition it is `extrapolate`. A scale of 1 leaves a condition as it is.
    """
    scales = {name: scale for name, scale in scales.items() if scale != 1}

    def guided(noisy: Tensor, sigma: Tensor) -> Tensor:
        found = denoise(noisy, sigma)
        steps = [(scale - 1) * (found - weaker[name](noisy, sigma)) for name, scale in scales.items()]
        return sum(steps, start=found)

    return guided


@about("guidance_interval")
def check_interval(interval: tuple[float, float], sigmas: Float[Tensor, "levels"] | None) -> None:
    """Raise InputError if noise levels (low, high] are none, or none of a solver's levels ``sigmas`` lies in them."""
    low, high = (finite_number("guidance_interval", bound) for bound in interval)
    if not 0 <= low < high:
        raise InputError(f"guidance_interval goes from a lower to a higher noise level, not {low} to {high}")
    if sigmas is not None and not ((sigmas > low) & (sigmas <= high)).any():
        raise InputError(
            f"none of the noise levels, {float(sigmas[0]):g} to {float(sigmas[-2]):g} in {len(sigmas) - 1} "
            f"steps, lies in the guidance_interval {low:g} to {high:g}"
        )


def within(guided: Denoise, denoise: Denoise, low: float, high: float) -> Denoise:
    """Return a denoise function that is ``guided`` at noise levels in (low, high], and ``denoise`` at other levels.

    At high levels guidance takes variety away, at low ones it changes next to nothing. The weaker denoise is not
    evaluated outside of the interval.

    >>> limited = within(lambda noisy, sigma: noisy + 1, lambda noisy, sigma: noisy, 0.5, 5.0)
    >>> [limited(torch.zeros(1), torch.tensor(sigma)).item() for sigma in (80.0, 5.0, 0.5)]
    [0.0, 1.0, 0.0]
    """

    def limited(noisy: Tensor, sigma: Tensor) -> Tensor:
        return (guided if low < sigma <= high else denoise)(noisy, sigma)

    return limited
