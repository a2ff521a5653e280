"""Cropping of patches from whole images: pixels and their coordinates, by the same indices, for any number of axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated as Float, Annotated as Float32, Annotated as Int, Annotated as Shaped

import torch
from torch import Tensor

from patch_diffusion.data.gather import moved
from patch_diffusion.patches.coords import patch_coordinates, patch_corners
from patch_diffusion.transfer import to_device


@dataclass(frozen=True)
class Patch:
    """A batch of n patches of one size, each cropped at another position of its image.

    ``pixels`` have the dtype of the images. ``coords`` are the coordinates of the pixels in the whole image, see
    `coordinate_grid`. ``corners`` are the indices of each patch's first pixel.

    >>> patch = random_patches(torch.zeros(1, 3, 5, 5), size=1, places=torch.tensor([[0.5, 0.0]]))
    >>> patch.corners, patch.coords.flatten()
    (tensor([[2, 0]]), tensor([-1.,  0.]))
    """

    pixels: Shaped[Tensor, "n c *size"]
    coords: Float32[Tensor, "n axes *size"]
    corners: Int[Tensor, "n axes"]

    @property
    def top(self) -> Int[Tensor, "n"]:
        """Index of the first row of each patch."""
        return self.corners[:, -2]

    @property
    def left(self) -> Int[Tensor, "n"]:
        """Index of the first column of each patch."""
        return self.corners[:, -1]


def random_patches(
    images: Shaped[Tensor, "n c *resolution"],
    size: int | Sequence[int],
    *,
    generator: torch.Generator | None = None,
    places: Float[Tensor, "n axes"] | None = None,
) -> Patch:
    """Crop one patch from every image, at a random position; all positions are equally likely.

    Args:
        images: whole images, such as (n, c, H, W), or volumes, of any dtype, on any device.
        size: shape of the patches in pixels; a single number is the side along every axis.
        generator: the random generator that draws the positions; None uses torch's default generator.
        places: numbers in [0, 1), y first, that choose the positions, instead of random ones.

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
    corners = to_device(patch_corners(places, size, resolution), images.device)
    # One gather takes all patches; the result is in channels-last memory.
    index = [torch.arange(num, device=images.device).view(-1, *[1] * len(size))]
    for place, (first, part) in enumerate(zip(corners.unbind(1), size, strict=True)):
        line = first[:, None] + torch.arange(part, device=images.device)
        index.append(line.view(num, *[-1 if other == place else 1 for other in range(len(size))]))
    pixels = moved(lambda pixels: pixels.movedim(1, -1)[tuple(index)].movedim(-1, 1), images)
    return Patch(pixels, patch_coordinates(corners, size, resolution), corners)


def whole_image(images: Shaped[Tensor, "n c *size"]) -> Patch:
    """Return whole images, with their whole coordinate grid, as patches of full size.

    >>> patch = whole_image(torch.zeros(4, 3, 32, 48))
    >>> patch.coords.shape, patch.top
    (torch.Size([4, 2, 32, 48]), tensor([0, 0, 0, 0]))
    """
    return random_patches(images, images.shape[2:])
