"""Solvers of the probability-flow ODE dx/dsigma = (x - D(x; sigma)) / sigma (EDM, arXiv 2206.00364, equation 1).

Each is a pure function ``solver(denoise, noisy, sigmas, *, noise=None, callback=None)``: from images (n, c, h, w) at
noise level ``sigmas[0]`` to images at ``sigmas[-1]``, which may be 0. They know neither networks nor coordinates nor
classes; those are bound into ``denoise``. ``callback`` is told of every step. ``noise`` is there so that all solvers
are called alike: those in `stochastic` draw from it, these do not.

>>> def denoise(noisy, sigma):  # where all data is grey
...     return torch.zeros_like(noisy)
>>> heun(denoise, torch.ones(1, 3, 2, 2), torch.tensor([80.0, 1.0, 0.0])).max()
tensor(0.)
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from patch_diffusion.sampling.step import Callback, Denoise, Step, StepNoise


def euler(
    denoise: Denoise,
    noisy: Tensor,
    sigmas: Tensor,
    *,
    noise: StepNoise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """First order, one evaluation a step; the same as DDIM (arXiv 2010.02502).

    Args:
        denoise: ``denoise(noisy, sigma)``, the best guess of the clean images, such as of `Denoiser` (n, c, h, w).
        noisy: images (n, c, h, w) with noise of level ``sigmas[0]``.
        sigmas: noise levels from high to low, or upwards without a 0, of which the last may be 0; see `karras_sigmas`.
        noise: not used: there so that all solvers are called alike.
        callback: told of every step.

    Returns:
        The images at ``sigmas[-1]``.

    >>> def denoise(noisy, sigma):  # where all data is grey
    ...     return torch.zeros_like(noisy)
    >>> euler(denoise, torch.ones(1, 3, 2, 2), torch.tensor([80.0, 1.0, 0.0])).abs().max()
    tensor(0.)
    """
    for index, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        denoised = denoise(noisy, sigma)
        if callback:
            callback(Step(index, sigma, noisy, denoised))
        slope = (noisy - denoised) / sigma
        noisy = noisy + (next_sigma - sigma) * slope
    return noisy


def heun(
    denoise: Denoise,
    noisy: Tensor,
    sigmas: Tensor,
    *,
    noise: StepNoise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Second order, two evaluations a step but for the last one to 0 (EDM, algorithm 1). It goes upwards too.

    Args:
        denoise: ``denoise(noisy, sigma)``, the best guess of the clean images, such as of `Denoiser` (n, c, h, w).
        noisy: images (n, c, h, w) with noise of level ``sigmas[0]``.
        sigmas: noise levels from high to low, or upwards without a 0, of which the last may be 0; see `karras_sigmas`.
        noise: not used: there so that all solvers are called alike.
        callback: told of every step.

    Returns:
        The images at ``sigmas[-1]``.

    >>> def denoise(noisy, sigma):  # where all data is grey
    ...     return torch.zeros_like(noisy)
    >>> heun(denoise, torch.ones(1, 3, 2, 2), torch.tensor([80.0, 1.0, 0.0])).abs().max()
    tensor(0.)
    """
    for index, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        denoised = denoise(noisy, sigma)
        if callback:
            callback(Step(index, sigma, noisy, denoised))
        noisy = heun_step(denoise, noisy, denoised, sigma, next_sigma)
    return noisy


def heun_step(denoise: Denoise, noisy: Tensor, denoised: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
    """An Euler step, and the same step again with the mean of the slopes at its two ends."""
    slope = (noisy - denoised) / sigma
    predicted = noisy + (next_sigma - sigma) * slope
    if next_sigma == 0:
        return predicted
    next_slope = (predicted - denoise(predicted, next_sigma)) / next_sigma
    return noisy + (next_sigma - sigma) * (slope + next_slope) / 2


def dpm_solver_2m(
    denoise: Denoise,
    noisy: Tensor,
    sigmas: Tensor,
    *,
    noise: StepNoise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Second order, one evaluation a step: DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2).

    In l = -ln(sigma) the ODE is dx/dl = D - x, so a step of h in l is x' = e^-h x + (1 - e^-h) D where D is constant. D
    is taken at the middle of the step, on the line through the last two; in the first step and in that to 0, as it is.

    Args:
        denoise: ``denoise(noisy, sigma)``, the best guess of the clean images, such as of `Denoiser` (n, c, h, w).
        noisy: images (n, c, h, w) with noise of level ``sigmas[0]``.
        sigmas: noise levels from high to low, of which the last may be 0; see `karras_sigmas`.
        noise: not used: there so that all solvers are called alike.
        callback: told of every step.

    Returns:
        The images at ``sigmas[-1]``.

    >>> def denoise(noisy, sigma):  # where all data is grey
    ...     return torch.zeros_like(noisy)
    >>> dpm_solver_2m(denoise, torch.ones(1, 3, 2, 2), torch.tensor([80.0, 1.0, 0.0])).abs().max()
    tensor(0.)
    """
    last = noisy
    for index, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        denoised = denoise(noisy, sigma)
        if callback:
            callback(Step(index, sigma, noisy, denoised))
        if next_sigma == 0:
            return denoised
        kept = next_sigma / sigma  # e^-h
        middle = denoised
        if index > 0:
            ratio = kept.log() / (sigma / sigmas[index - 1]).log()  # of h to that of the last step
            middle = denoised + ratio / 2 * (denoised - last)
        noisy = kept * noisy + (1 - kept) * middle
        last = denoised
    return noisy


def dpm_solver_3m(
    denoise: Denoise,
    noisy: Tensor,
    sigmas: Tensor,
    *,
    noise: StepNoise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Third order, one evaluation a step: DPM-Solver++ with the last three D (arXiv 2211.01095).

    A step of h in l = -ln(sigma) is x' = e^-h x + integral over u from 0 to h of e^-(h - u) D(l + u), here with the
    parabola D + slope u + curve u^2 through the last three D; with what there is in the first two steps. With less than
    some 25 steps the parabola overshoots, and `dpm_solver_2m` is better.

    Args:
        denoise: ``denoise(noisy, sigma)``, the best guess of the clean images, such as of `Denoiser` (n, c, h, w).
        noisy: images (n, c, h, w) with noise of level ``sigmas[0]``.
        sigmas: noise levels from high to low, of which the last may be 0; see `karras_sigmas`.
        noise: not used: there so that all solvers are called alike.
        callback: told of every step.

    Returns:
        The images at ``sigmas[-1]``.

    >>> def denoise(noisy, sigma):  # where all data is grey
    ...     return torch.zeros_like(noisy)
    >>> dpm_solver_3m(denoise, torch.ones(1, 3, 2, 2), torch.tensor([80.0, 1.0, 0.0])).abs().max()
    tensor(0.)
    """
    known: list[tuple[Tensor, Tensor]] = []  # l and D, the newest first
    for index, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        denoised = denoise(noisy, sigma)
        if callback:
            callback(Step(index, sigma, noisy, denoised))
        if next_sigma == 0:
            return denoised
        h = (sigma / next_sigma).log()
        kept = next_sigma / sigma  # e^-h
        known = [(-sigma.log(), denoised), *known[:2]]
        noisy = kept * noisy + (1 - kept) * denoised
        if len(known) > 1:
            (now, _), (before, last) = known[:2]
            slope = (denoised - last) / (now - before)
            if len(known) > 2:
                earliest, first = known[2]
                curve = (slope - (last - first) / (before - earliest)) / (now - earliest)
                slope = slope + curve * (now - before)
                noisy = noisy + (h**2 - 2 * h + 2 * (1 - kept)) * curve
            noisy = noisy + (h - (1 - kept)) * slope
    return noisy
