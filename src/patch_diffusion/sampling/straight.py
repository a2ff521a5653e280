"""Heun's steps in the time of flow matching, in which a step from pure noise is as good as any other.

In x = (1 - t) y, where y is the unscaled image at noise level sigma = t / (1 - t), the probability-flow ODE is
dx/dt = (x - D) / t: of the form that it has in y and sigma, and finite at t = 1. A first Heun's step in sigma would
begin at an infinite noise level, and take the mean of the slopes there and at its end as that of the whole way. Solvers
of first order, and those in ln(sigma), are the same in both.
"""

from __future__ import annotations

from itertools import pairwise

from patch_diffusion.denoise.process import Flow
from patch_diffusion.sampling.solvers import begin_step
from patch_diffusion.sampling.step import Callback, Denoise, Images, Level, Sigmas, StepNoise


def flow_heun(
    denoise: Denoise, noisy: Images, sigmas: Sigmas, *, noise: StepNoise | None = None, callback: Callback | None = None
) -> Images:
    """Solve by Heun's method in the time of the process `Flow`.

    Args:
        denoise, noisy, sigmas, noise, callback: as for `heun`, as is the result.

    >>> def denoise(noisy, sigma):  # where all data is grey
    ...     return torch.zeros_like(noisy)
    >>> flow_heun(denoise, torch.ones(1, 3, 2, 2), torch.tensor([80.0, 1.0, 0.0])).abs().max()
    tensor(0.)
    """
    for index, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        denoised = begin_step(denoise, noisy, sigma, index, callback)
        noisy = flow_heun_step(denoise, noisy, denoised, sigma, next_sigma)
    return noisy


def flow_heun_step(denoise: Denoise, noisy: Images, denoised: Images, sigma: Level, next_sigma: Level) -> Images:
    """Take an Euler step, then take it again with the mean of the slopes at its two ends, in the time of `Flow`."""
    process = Flow()
    time, next_time = process.time(sigma), process.time(next_sigma)
    scale, next_scale = process.scale(time), process.scale(next_time)
    scaled = scale * noisy
    slope = (scaled - denoised) / time
    predicted = scaled + (next_time - time) * slope
    if next_sigma == 0:
        return predicted
    next_slope = (predicted - denoise(predicted / next_scale, next_sigma)) / next_time
    return (scaled + (next_time - time) * (slope + next_slope) / 2) / next_scale
