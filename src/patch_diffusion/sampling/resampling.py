"""The solver of conditional sampling, which repeats its steps (RePaint, Lugmayr et al., arXiv 2201.09865).

A step that only replaces the known pixels ignores how well the others fit them. Adding the noise of the step back and
taking the step again makes the two agree.
"""

from __future__ import annotations

from itertools import count, pairwise

from patch_diffusion.errors import InputError
from patch_diffusion.sampling.solvers import begin_step
from patch_diffusion.sampling.step import Callback, Denoise, Images, Sigmas, StepNoise


def resampling(
    denoise: Denoise,
    noisy: Images,
    sigmas: Sigmas,
    *,
    noise: StepNoise,
    callback: Callback | None = None,
    repeats: int = 1,
) -> Images:
    """Solve by ancestral steps, each taken ``repeats`` times, the last to 0 once (RePaint, algorithm 1, jumps of 1).

    With one repeat it is `ancestral` with an eta of 1. The network is evaluated (steps - 1) * repeats + 1 times.
    """
    if repeats < 1:
        raise InputError(f"every step is taken at least once, not {repeats} times")
    draws = count()
    for index, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        for left in reversed(range(repeats)):
            is_last = left == 0 or next_sigma == 0
            denoised = begin_step(denoise, noisy, sigma, index, callback if is_last else None)
            if next_sigma == 0:
                return denoised
            # The noise is kept in proportion to the variance that stays, and fresh noise fills up to the next level.
            kept = (next_sigma / sigma) ** 2
            fresh = next_sigma * (1 - kept).sqrt()
            noisy = denoised + kept * (noisy - denoised) + fresh * noise(next(draws))
            if left:
                noisy = noisy + (sigma**2 - next_sigma**2).sqrt() * noise(next(draws))
    return noisy
