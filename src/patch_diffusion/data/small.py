"""Whole images made small, to tell a network that sees a patch what the rest of the image shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patch_diffusion.data.images import ImageSet
from patch_diffusion.data.latents.folder import LatentSet
from patch_diffusion.data.reading import cache
from patch_diffusion.data.reading.parallel import progress
from patch_diffusion.data.reading.pixels import ArrayPlan, Plan, read
from patch_diffusion.errors import InputError

_VALUES_AT_ONCE = 2**22
"""Of an image, that are looked at together: what making it small takes does not grow with it."""


def small_shape(side: int, resolution: tuple[int, int], stride: int = 1) -> tuple[int, int]:
    """Height and width of whole images made small.

    The shorter side becomes ``side``, the longer one keeps the aspect as well as multiples of ``stride`` can.

    Raises:
        InputError: ``side`` is no multiple of ``stride``, or the images are not larger than that.

    >>> small_shape(16, (64, 100), 4)
    (16, 24)
    """
    if side < 1 or side % stride:
        raise InputError(f"patches.context must be a multiple of {stride} for this network, not {side}")
    shorter, longer = sorted(resolution)
    if side >= shorter:
        height, width = resolution
        raise InputError(
            f"patches.context {side} is the side of small copies of the images, which are {height}x{width} themselves: "
            f"give less than {shorter}, or leave it out"
        )
    other = max(side, round(side * longer / shorter / stride) * stride)
    return (side, other) if resolution[0] == shorter else (other, side)


def make_small(images: Tensor, shape: tuple[int, int]) -> Tensor:
    """Images (n, c, H, W) of any type as float32 (n, c, *shape), without aliasing.

    The outer pixels stay where they are: coordinates of -1 and 1 belong to the centres of the first and the last pixel
    before and after, so that a place shows the same in both. In between, a pixel is the mean of those around it,
    weighted by a triangle as wide as two of the small pixels.

    >>> make_small(torch.arange(9.0).expand(1, 1, 9, 9), (3, 3))[0, 0, 0]
    tensor([1., 4., 7.])
    """
    height, width = images.shape[-2:]
    down, across = (_weights(*lengths, images.device) for lengths in ((shape[0], height), (shape[1], width)))
    small = torch.zeros(*images.shape[:2], *shape, device=images.device)
    rows = max(1, _VALUES_AT_ONCE // max(images[..., :1, :].numel(), 1))
    for top in range(0, height, rows):
        strip = images[..., top : top + rows, :].float()
        small += down[:, top : top + rows] @ (strip @ across.mT)
    return small


def small_images(images: ImageSet, shape: tuple[int, int], *, show: bool = False) -> ImageSet:
    """All images made small, in the same order and of the same type; kept in the cache where they come from a file.

    Args:
        images: of one size.
        shape: height and width, see `small_shape`.
        show: a progress bar, on a terminal.

    Raises:
        InputError: latents, which would be no latents then; or there is no room.
    """
    if isinstance(images, LatentSet):
        raise InputError("patches.context makes images small, which latents cannot be: leave it out")
    pixels = images.pixels

    def blocks() -> Iterator[NDArray[np.generic]]:
        numbers = range(len(pixels))
        for number in progress(numbers, len(numbers), "making images small", show=show):
            small = make_small(pixels[number : number + 1], shape)
            yield (small if pixels.dtype is torch.float32 else small.round().to(pixels.dtype)).numpy()

    dtype = images.codec.dtype
    plan = Plan(dtype, [ArrayPlan((images.channels, *shape), len(pixels), blocks)])
    key = _key(images, shape)
    found = read(lambda: plan, key, images.options, often=key is not None)
    return replace(images, pixels=found.pixels[0], file=None if found.files is None else found.files[0])


def _key(images: ImageSet, shape: tuple[int, int]) -> dict[str, object] | None:
    """What small images follow from; None for those that are not mapped from a file that is still there."""
    if images.file is None or not images.file.exists():
        return None
    layout = [list(images.pixels.shape), list(images.pixels.stride()), images.pixels.storage_offset()]
    return {"small": shape, "of": cache.state_of(images.file), "layout": layout}


def _weights(small: int, large: int, device: torch.device) -> Tensor:
    """(small, large), rows of sum 1: what each pixel of a small axis takes of those of a large one."""
    places, centres = (torch.linspace(0, 1, length, dtype=torch.float64) for length in (large, small))
    if small == 1:
        return torch.full((1, large), 1 / large, device=device)
    weights = (1 - (places - centres[:, None]).abs() * (small - 1)).clamp(min=0)
    return (weights / weights.sum(dim=1, keepdim=True)).float().to(device)
