"""The errors of denoising an image at several noise levels, as maps.

Each noise is used with both signs, and the denoised images are averaged before they are compared with the image. What
the noise adds to them in proportion then cancels. What is left is where the model pulls the image away from itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated as Float

import torch
from torch import Tensor

from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.threads import Shared
from patch_diffusion.patches.coords import coordinate_grid
from patch_diffusion.streams import generator
from patch_diffusion.transfer import to_device

RATIOS = (0.2, 0.5, 1.2, 3.0)
"""The default noise levels, in standard deviations of the training images."""

_LEAST = 0.01
"""Errors below this share of the deviation of the training images are alike: what remains there is rounding."""


def levels_of(model: Denoiser) -> tuple[float, ...]:
    """Return the default noise levels for a model."""
    return tuple(ratio * model.sigma_data for ratio in RATIOS)


def squared_errors(
    model: Denoiser, clean: Float[Tensor, "n c *shape"], levels: Sequence[float], noises: int, seed: int
) -> Float[Tensor, "n levels *shape"]:
    """Return the squared error of the mean of several denoised images, at each noise level, as a mean over channels.

    The noise follows from the seed, the level's place and the shape alone, so every image has the same.
    """
    shape = tuple(clean.shape[1:])
    conditions, denoise = Conditions(coordinate_grid(*shape[1:], device=clean.device)), Shared(model)
    found: list[Tensor] = []
    for place, sigma in enumerate(levels):
        level, total = torch.full((len(clean),), sigma, device=clean.device), torch.zeros_like(clean)
        for draw in range(noises // 2):
            noise = to_device(torch.randn(shape, generator=generator(seed, "detection", place, draw)), clean.device)
            for sign in (sigma, -sigma):
                total += denoise(clean + sign * noise, level, conditions)
        found.append((total / noises - clean).square().mean(dim=1))
    return torch.stack(found, dim=1)


def log_errors(
    errors: Float[Tensor, "n levels *shape"], smoothing: Sequence[float], sigma_data: float
) -> Float[Tensor, "n features *shape"]:
    """Return logarithms of errors, smoothed by each Gaussian: a feature for each level and Gaussian."""
    least = (_LEAST * sigma_data) ** 2
    return torch.cat([(smoothed(errors, width) + least).log() for width in smoothing], dim=1)


def smoothed(maps: Float[Tensor, "n k *shape"], width: float) -> Float[Tensor, "n k *shape"]:
    """Smooth maps by a Gaussian of this standard deviation in pixels along every axis; at the edges it is cut off.

    >>> smoothed(torch.ones(1, 1, 4, 6), 2.0).allclose(torch.ones(1, 1, 4, 6))
    True
    """
    for axis in range(2, maps.ndim):
        place = torch.arange(maps.shape[axis], dtype=torch.float64)
        weights = (-(place - place[:, None]).square() / (2 * width**2)).exp()
        weights = to_device((weights / weights.sum(dim=1, keepdim=True)).float(), maps.device)
        maps = (maps.movedim(axis, -1) @ weights.mT).movedim(-1, axis)
    return maps


def medians(maps: Float[Tensor, "n k *shape"]) -> Float[Tensor, "n k"]:
    """Return the median of each map."""
    return maps.flatten(2).median(dim=2).values


def deviations_over_places(shape: Sequence[int]) -> float:
    """Return the deviation of the Gaussian, in pixels, by which moments are smoothed over neighbouring places."""
    return max(1.0, math.sqrt(math.prod(shape)) / 32)
