"""Tiled denoising: the network sees one tile of an image at a time, with the coordinates of its place.

The denoised tiles are put together at every step of the solver. Tiles that overlap are blended, each pixel by the
weights of the tiles that hold it, which is the least-squares solution for an image all of whose tiles are to be
denoised as the network says (MultiDiffusion, Bar-Tal et al., arXiv 2302.08113).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Annotated as Float, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.errors import InputError, option_error
from patch_diffusion.sampling.step import ConditionalDenoise, Denoise
from patch_diffusion.transfer import copied_once

_AGAIN: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}

Place = tuple[int, int, int]
"""The place of a tile: the index of its image, and the row and column where it begins."""

Places = Callable[[int, Tensor], Sequence[Place]]
"""A function ``places(num_images, sigma)`` to the places of a step's tiles, which cover every pixel of every image."""


def even_starts(length: int, size: int, overlap: int) -> list[int]:
    """Return where tiles begin along an axis: evenly spaced from end to end, as few as overlap by ``overlap`` at least.

    >>> even_starts(160, 64, 16)
    [0, 48, 96]
    """
    gaps = math.ceil((length - size) / (size - overlap))
    return [round(index * (length - size) / gaps) for index in range(gaps)] + [length - size]


def shifted_starts(length: int, size: int, offset: int) -> list[int]:
    """Return where tiles begin along an axis: side by side, one at ``offset``, those at the ends moved inside.

    >>> shifted_starts(16, 8, 0), shifted_starts(16, 8, 3)
    ([0, 8], [0, 3, 8])
    """
    return sorted({min(max(start, 0), length - size) for start in range(offset % size - size, length, size)})


def checked_overlap(shape: Sequence[int], tile: Sequence[int] | None, overlap: int | None) -> int:
    """Return the overlap of tiles in pixels, a quarter of their shorter side for None; 0 without tiles.

    Raises:
        InputError: there are no tiles, or they do not fit the image, or overlap by too much.
    """
    if tile is None:
        if overlap is not None:
            raise option_error("overlap", "is that of tiles: give tile, too, or leave it out")
        return 0
    if tile[0] > shape[0] or tile[1] > shape[1]:
        raise InputError(f"a tile of {tile[0]}x{tile[1]} does not fit an image of {shape[0]}x{shape[1]}", option="tile")
    overlap = min(tile) // 4 if overlap is None else overlap
    if not 0 <= overlap < min(tile):
        raise InputError(
            f"tiles of {tile[0]}x{tile[1]} overlap by 0 to {min(tile) - 1} pixels, not {overlap}", option="overlap"
        )
    return overlap


def smooth_window(size: Sequence[int], overlap: int) -> Float[Tensor, "{size[0]} {size[1]}"]:
    """Return the weights of a tile's pixels, above 0: 1 inside, falling to its edges as the squared sine.

    The weights of two tiles that overlap by exactly ``overlap`` pixels add up to 1.
    """
    rows, columns = (_ramps(length, overlap) for length in size)
    return rows[:, None] * columns


def in_tiles(
    model: ConditionalDenoise,
    conditions: Conditions,
    places: Places,
    window: Float[Tensor, "h w"],
    at_once: int,
) -> Denoise:
    """Return a function ``denoise(noisy, sigma)`` for images (n, c, H, W) of which the model only sees tiles.

    Args:
        model: a denoiser.
        conditions: conditions of the whole images; coordinates (2, H, W) are cut like the tiles, while coordinates
            (2, h, w) are given to every tile.
        places: the places of the tiles.
        window: weights of a tile's pixels.
        at_once: the number of tiles that the model is given together.
    """
    height, width = window.shape
    coords, rest, inputs = conditions.coords, replace(conditions, coords=None, inputs=None), conditions.inputs
    assert coords is not None
    own, weights_like = coords.shape[-2:] == window.shape, copied_once(window)

    def cut(image: Tensor, top: int, left: int) -> Tensor:
        return image[:, top : top + height, left : left + width]

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        weights = weights_like(noisy)
        chosen = places(len(noisy), sigma)
        total = torch.zeros_like(noisy)
        weight = torch.zeros_like(noisy[:, :1])
        for first in range(0, len(chosen), at_once):
            group = chosen[first : first + at_once]
            pixels = torch.stack([cut(noisy[image], top, left) for image, top, left in group])
            where = coords if own else torch.stack([cut(coords, top, left) for _, top, left in group])
            told = replace(rest.select([image for image, _, _ in group]), coords=where)
            if inputs is not None:
                told = replace(told, inputs=torch.stack([cut(inputs[image], top, left) for image, top, left in group]))
            # A backward pass through an image computes its tiles again, so that it holds the insides of one group.
            call = partial(checkpoint, model, **_AGAIN) if pixels.requires_grad else model
            denoised = call(pixels.float(), sigma.float(), told).to(noisy)
            for (image, top, left), tile in zip(group, denoised, strict=True):
                cut(total[image], top, left).add_(tile * weights)
                cut(weight[image], top, left).add_(weights)
        return total.div_(weight)

    return denoise


def covering(resolution: Sequence[int], tile: Sequence[int], overlap: int) -> Places:
    """Return a function that gives the places of evenly spaced, overlapping tiles, the same ones at every step."""
    tops, lefts = (even_starts(length, size, overlap) for length, size in zip(resolution, tile, strict=True))

    def places(num_images: int, sigma: Tensor) -> list[Place]:
        return list(product(range(num_images), tops, lefts))

    return places


def _ramps(length: int, overlap: int) -> Tensor:
    if overlap == 0:
        return torch.ones(length)
    place = torch.arange(length, dtype=torch.float64)
    distance = torch.minimum(place, place.flip(0)) + 0.5
    return (math.pi / 2 * (distance / overlap).clamp(max=1)).sin() ** 2
