"""Crop guidance: guidance away from the same network's output on crops.

A network that was trained by patches knows crops, on which it does not see the rest of the image; guidance away from
its denoised crops is guidance towards what only the whole image shows. The crops are a tiling whose place is random, so
that no border stays where it is: a function of the seed and the solver's step alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Annotated as Float

import torch
from torch import Tensor

from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.sampling.step import ConditionalDenoise, Denoise
from patch_diffusion.sampling.tiles import Place, in_tiles, shifted_starts
from patch_diffusion.streams import uniform


def in_crops(
    model: ConditionalDenoise,
    conditions: Conditions,
    *,
    size: Sequence[int],
    seeds: Sequence[int],
    sigmas: Float[Tensor, "levels"],
    at_once: int,
) -> Denoise:
    """Return a function ``denoise(noisy, sigma)`` by a model that only sees random crops, with their coordinates.

    Args:
        model: a denoiser.
        conditions: conditions of the whole images, with their coordinates (2, H, W).
        size: height and width of a crop.
        seeds: one seed per image.
        sigmas: noise levels of the solver; a level belongs to the step of the nearest of them that is not above it.
        at_once: the number of crops that the model is given together.
    """
    assert conditions.coords is not None
    height, width = conditions.coords.shape[-2:]

    def places(num_images: int, sigma: Tensor) -> list[Place]:
        step = int((sigmas > sigma).sum())
        found: list[Place] = []
        for image, seed in enumerate(seeds):
            down, right = (int(uniform(seed, "crops", step, axis) * size[axis]) for axis in (0, 1))
            tops, lefts = shifted_starts(height, size[0], down), shifted_starts(width, size[1], right)
            found += product([image], tops, lefts)
        return found

    return in_tiles(model, conditions, places, torch.ones(size), at_once)
