"""Downscaled whole images, which a network can be given next to each patch as context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from patch_diffusion.data.images import ImageSet
from patch_diffusion.data.latents.folder import LatentSet
from patch_diffusion.data.paired import PairedInput, small_side
from patch_diffusion.data.reading import cache
from patch_diffusion.data.reading.parallel import progress
from patch_diffusion.data.reading.pixels import ArrayPlan, Plan, read
from patch_diffusion.errors import option_error
from patch_diffusion.transfer import to_device

_VALUES_AT_ONCE = 2**22
"""The number of values that are downscaled at a time, so that memory does not grow with the size of the image."""


def small_shape(side: int, resolution: tuple[int, ...], stride: int = 1) -> tuple[int, ...]:
    """Return the height and width that whole images are downscaled to, as context of patches.

    The shorter side becomes ``side``; the longer one is the multiple of ``stride`` that keeps the aspect ratio best.

    Raises:
        InputError: ``side`` is no multiple of ``stride``, or the images are not larger than ``side``.

    >>> small_shape(16, (64, 100), 4)
    (16, 24)
    """
    if side < 1 or side % stride:
        raise option_error("patches.context", f"must be a multiple of {stride} for this network, not {side}")
    shorter = min(resolution)
    if side >= shorter:
        raise option_error(
            "patches.context",
            f"{side} is the side of small copies of the images, which are "
            f"{'x'.join(map(str, resolution))} themselves: give less than {shorter}, or leave it out",
        )
    return tuple(max(side, round(side * length / shorter / stride) * stride) for length in resolution)


def make_small(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Downscale images (n, c, H, W) of any dtype to float32 (n, c, *shape), without aliasing.

    The outer pixels stay in place: coordinates -1 and 1 are the centres of the first and the last pixel before and
    after, so that the same coordinates show the same content. Each small pixel is the mean of the pixels around it,
    weighted by a triangle as wide as two small pixels.

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


def small_input(about: PairedInput, pixels: Tensor) -> Tensor:
    """Return small copies (n, width, h, w) of whole paired inputs (n, c, H, W), as they are shown to a network."""
    resolution = tuple(pixels.shape[2:])
    shape = small_shape(small_side(resolution), resolution)
    if about.categories:
        return about.encode(F.interpolate(pixels.float(), shape, mode="nearest-exact"))
    return about.encode(make_small(pixels, shape))


def small_inputs(about: PairedInput, images: ImageSet, *, show: bool = False) -> ImageSet:
    """Return small copies of a paired input of all images, given as an image set, in the same order."""
    if not about.categories:
        return small_images(images, small_shape(small_side(images.resolution), images.resolution), show=show)
    shape = small_shape(small_side(images.resolution), images.resolution)
    rows = (images.pixels[row : row + 1] for row in range(len(images.pixels)))
    small = [F.interpolate(row.float(), shape, mode="nearest-exact").to(row.dtype) for row in rows]
    return replace(images, pixels=torch.cat(small), file=None)


def small_images(images: ImageSet, shape: tuple[int, ...], *, show: bool = False) -> ImageSet:
    """Downscale all images of a set, in the same order and dtype; if they are mapped from a file, cache them on disk.

    ``shape`` is the height and width of the result, see `small_shape`. Latents cannot be downscaled: an `InputError`.
    """
    if isinstance(images, LatentSet):
        raise option_error("patches.context", "makes images small, which latents cannot be: leave it out")
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
    return replace(images, pixels=found.arrays[0].pixels, file=found.arrays[0].file)


def _key(images: ImageSet, shape: tuple[int, ...]) -> dict[str, object] | None:
    """Return the cache key of downscaled images; None if the images are not mapped from a file that still exists."""
    if images.file is None or not images.file.exists():
        return None
    layout = [list(images.pixels.shape), list(images.pixels.stride()), images.pixels.storage_offset()]
    return {"small": shape, "of": cache.state_of(images.file), "layout": layout}


def _weights(small: int, large: int, device: torch.device) -> Tensor:
    """Return the matrix (small, large) that downscales an axis: each new pixel's weights of old ones; rows sum to 1."""
    places, centres = (torch.linspace(0, 1, length, dtype=torch.float64) for length in (large, small))
    if small == 1:
        return torch.full((1, large), 1 / large, device=device)
    weights = (1 - (places - centres[:, None]).abs() * (small - 1)).clamp(min=0)
    return to_device((weights / weights.sum(dim=1, keepdim=True)).float(), device)
