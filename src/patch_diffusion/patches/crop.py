"""Patches: pixels and their coordinates, cut from whole images by the same indices. Any number of axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patch_diffusion.patches.coords import patch_coordinates, patch_corners


@dataclass(frozen=True)
class Patch:
    """A batch of patches of one size, each cut at its own place.

    ``pixels`` (n, c, *size) keep the type of the images they were cut from. ``coords`` (n, axes, *size) are their
    places in the whole image, see `coordinate_grid`. ``corners`` (n, axes) are the indices of the first pixels.

    >>> patch = random_patches(torch.zeros(1, 3, 5, 5), size=1, places=torch.tensor([[0.5, 0.0]]))
    >>> patch.corners, patch.coords.flatten()
    (tensor([[2, 0]]), tensor([-1.,  0.]))
    """

    pixels: Tensor
    coords: Tensor
    corners: Tensor

    @property
    def top(self) -> Tensor:
        """Index of the first row of each patch, (n,)."""
        return self.corners[:, -2]

    @property
    def left(self) -> Tensor:
        """Index of the first column of each patch, (n,)."""
        return self.corners[:, -1]


def random_patches(
    images: Tensor,
    size: int | Sequence[int],
    *,
    generator: torch.Generator | None = None,
    places: Tensor | None = None,
) -> Patch:
    """Cut one patch out of every image, each at a place of its own, all places equally likely.

    Args:
        images: whole images (n, c, H, W), or volumes (n, c, D, H, W), of any type, on any device.
        size: shape of the patches in pixels; a single number is that of every axis.
        generator: draws the places; torch's default generator where none is given.
        places: the places themselves, (n, axes) uniform in [0, 1) for y and x, instead of drawing them.

    Raises:
        InputError: a patch of this size does not fit in the images.

    >>> patch = random_patches(torch.zeros(4, 3, 32, 48), size=16)
    >>> patch.pixels.shape, patch.coords.shape
    (torch.Size([4, 3, 16, 16]), torch.Size([4, 2, 16, 16]))
    """
    num, resolution = len(images), tuple(images.shape[2:])
    size = (size,) * len(resolution) if isinstance(size, int) else tuple(size)
    if places is None:
        device = generator.device if generator is not None else images.device
        places = torch.rand(num, len(resolution), generator=generator, device=device)
    corners = patch_corners(places, size, resolution).to(images.device, non_blocking=True)
    # One gather; the result lies in memory channels last.
    index = [torch.arange(num, device=images.device).view(-1, *[1] * len(size))]
    for place, (first, part) in enumerate(zip(corners.unbind(1), size, strict=True)):
        line = first[:, None] + torch.arange(part, device=images.device)
        index.append(line.view(num, *[-1 if other == place else 1 for other in range(len(size))]))
    pixels = images.movedim(1, -1)[tuple(index)].movedim(-1, 1)
    return Patch(pixels, patch_coordinates(corners, size, resolution), corners)


def whole_image(images: Tensor) -> Patch:
    """Return the images themselves (n, c, H, W), with the whole coordinate grid, as the patch of full size.

    >>> patch = whole_image(torch.zeros(4, 3, 32, 48))
    >>> patch.coords.shape, patch.top
    (torch.Size([4, 2, 32, 48]), tensor([0, 0, 0, 0]))
    """
    return random_patches(images, images.shape[2:])
