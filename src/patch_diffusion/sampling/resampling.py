"""The solver of conditional sampling: steps that are taken again and again (RePaint, Lugmayr et al., arXiv 2201.09865).

A step that only replaces what is known does not look at how well the rest goes with it. To add the noise of the step
back and take it again lets the two come together.
"""

from __future__ import annotations

from itertools import count, pairwise

from torch import Tensor

from patch_diffusion.errors import InputError
from patch_diffusion.sampling.step import Callback, Denoise, Step, StepNoise


def resampling(
    denoise: Denoise,
    noisy: Tensor,
    sigmas: Tensor,
    *,
    noise: StepNoise,
    callback: Callback | None = None,
    repeats: int = 1,
) -> Tensor:
    """Ancestral steps, each taken ``repeats`` times, but for the last one to 0 (RePaint, algorithm 1, jumps of 1).

    With ``repeats`` of 1 it is `ancestral` with an eta of 1. The network is evaluated (steps - 1) * repeats + 1 times.
    """
    if repeats < 1:
        raise InputError(f"every step is taken at least once, not {repeats} times")
    draws = count()
    for index, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        for left in reversed(range(repeats)):
            denoised = denoise(noisy, sigma)
            if next_sigma == 0:
                left = 0
            if callback and left == 0:
                callback(Step(index, sigma, noisy, denoised))
            if next_sigma == 0:
                return denoised
            # Noise is kept in proportion to the variance that stays, and filled up to the next level.
            kept = (next_sigma / sigma) ** 2
            fresh = next_sigma * (1 - kept).sqrt()
            noisy = denoised + kept * (noisy - denoised) + fresh * noise(next(draws))
            if left:
                noisy = noisy + (sigma**2 - next_sigma**2).sqrt() * noise(next(draws))
    return noisy
