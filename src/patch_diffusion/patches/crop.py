"""Patches: pixels and their coordinates, cut from whole images by the same indices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from patch_diffusion.errors import InputError
from patch_diffusion.patches.coords import axis


@dataclass(frozen=True)
class Patch:
    """A batch of patches of one size, each cut at its own place.

    ``pixels`` (n, c, h, w) keep the type of the images they were cut from. ``coords`` (n, 2, h, w) are their places in
    the whole image, see `coordinate_grid`. ``top`` and ``left`` (n,) are the pixel indices of the first row and column.

    >>> patch = random_patches(torch.zeros(1, 3, 5, 5), size=1, places=torch.tensor([[0.5, 0.0]]))
    >>> patch.top, patch.left, patch.coords.flatten()
    (tensor([2]), tensor([0]), tensor([-1.,  0.]))
    """

    pixels: Tensor
    coords: Tensor
    top: Tensor
    left: Tensor


def random_patches(
    images: Tensor,
    size: int | tuple[int, int],
    *,
    generator: torch.Generator | None = None,
    places: Tensor | None = None,
) -> Patch:
    """Cut one patch out of every image, each at a place of its own, all places equally likely.

    Args:
        images: whole images (n, c, H, W) of any type, on any device.
        size: height and width of the patches in pixels; a single number is both.
        generator: draws the places; torch's default generator where none is given.
        places: the places themselves, (n, 2) uniform in [0, 1) for y and x, instead of drawing them.

    Raises:
        InputError: a patch of this size does not fit in the images.

    >>> patch = random_patches(torch.zeros(4, 3, 32, 48), size=16)
    >>> patch.pixels.shape, patch.coords.shape
    (torch.Size([4, 3, 16, 16]), torch.Size([4, 2, 16, 16]))
    """
    num, resolution = len(images), (images.shape[-2], images.shape[-1])
    height, width = (size, size) if isinstance(size, int) else size
    if places is None:
        device = generator.device if generator is not None else images.device
        places = torch.rand(num, 2, generator=generator, device=device)
    top, left = corners(places, (height, width), resolution)
    top, left = top.to(images.device, non_blocking=True), left.to(images.device, non_blocking=True)
    sample = torch.arange(num, device=images.device)[:, None, None]
    rows = (top[:, None] + torch.arange(height, device=images.device))[:, :, None]
    columns = (left[:, None] + torch.arange(width, device=images.device))[:, None, :]
    # One gather; the result lies in memory channels last.
    pixels = images.permute(0, 2, 3, 1)[sample, rows, columns].permute(0, 3, 1, 2)
    return Patch(pixels, patch_coordinates(top, left, (height, width), resolution), top, left)


def corners(places: Tensor, size: tuple[int, int], resolution: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Indices (n,) of the first row and column of patches, on the host.

    Args:
        places: (n, 2), uniform in [0, 1) for y and x.
        size: height and width of the patches.
        resolution: those of the images.

    Raises:
        InputError: a patch of this size does not fit in the images.
    """
    (height, width), (image_height, image_width) = size, resolution
    if not (0 < height <= image_height and 0 < width <= image_width):
        raise InputError(f"a patch of {height}x{width} does not fit an image of {image_height}x{image_width}")
    free = torch.tensor([image_height - height, image_width - width])
    # Rounding may take a place just below 1 to the number of choices itself.
    top, left = (places.cpu() * (free + 1)).long().minimum(free).unbind(1)
    return top, left


def patch_coordinates(top: Tensor, left: Tensor, size: tuple[int, int], resolution: tuple[int, int]) -> Tensor:
    """The coordinates of patches, (n, 2, h, w): those of `coordinate_grid`, of which only two axes are made."""
    num, (height, width), device = len(top), size, top.device
    y, x = (axis(length, device=device) for length in resolution)
    rows = y[top[:, None] + torch.arange(height, device=device)]
    columns = x[left[:, None] + torch.arange(width, device=device)]
    grid = [columns[:, None, :].expand(num, height, width), rows[:, :, None].expand(num, height, width)]
    return torch.stack(grid, dim=-1).permute(0, 3, 1, 2)  # channels last, as the pixels


def whole_image(images: Tensor) -> Patch:
    """The images themselves (n, c, H, W), with the whole coordinate grid: the patch of full size.

    >>> patch = whole_image(torch.zeros(4, 3, 32, 48))
    >>> patch.coords.shape, patch.top
    (torch.Size([4, 2, 32, 48]), tensor([0, 0, 0, 0]))
    """
    return random_patches(images, (images.shape[-2], images.shape[-1]))
