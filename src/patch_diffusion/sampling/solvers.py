"""Solvers of the probability-flow ODE dx/dsigma = (x - D(x; sigma)) / sigma (EDM, arXiv 2206.00364, equation 1).

Each is a pure function ``solver(denoise, noisy, sigmas)``: from an image at noise level ``sigmas[0]`` to one at
``sigmas[-1]``. They know neither networks nor coordinates nor classes; those are bound into ``denoise``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""``denoise(noisy, sigma)``: images (n, c, h, w) and one noise level to denoised images."""

Solver = Callable[[Denoise, Tensor, Tensor], Tensor]


def euler(denoise: Denoise, noisy: Tensor, sigmas: Tensor) -> Tensor:
    """First order, one evaluation a step; the same as DDIM (arXiv 2010.02502)."""
    for sigma, next_sigma in pairwise(sigmas):
        slope = (noisy - denoise(noisy, sigma)) / sigma
        noisy = noisy + (next_sigma - sigma) * slope
    return noisy


def heun(denoise: Denoise, noisy: Tensor, sigmas: Tensor) -> Tensor:
    """Second order, two evaluations a step but for the last one to 0 (EDM, algorithm 1)."""
    for sigma, next_sigma in pairwise(sigmas):
        slope = (noisy - denoise(noisy, sigma)) / sigma
        predicted = noisy + (next_sigma - sigma) * slope
        if next_sigma > 0:
            next_slope = (predicted - denoise(predicted, next_sigma)) / next_sigma
            predicted = noisy + (next_sigma - sigma) * (slope + next_slope) / 2
        noisy = predicted
    return noisy


SOLVERS: dict[str, Solver] = {"euler": euler, "heun": heun}
