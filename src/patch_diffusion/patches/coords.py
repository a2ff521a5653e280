"""Coordinates, which say where each pixel of an image or a patch lies in its whole image, for any number of axes.

A shape is (height, width), or (depth, height, width) of a volume. Coordinates are in the opposite order, x first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated as Float, Annotated as Float32, Annotated as Int

import torch
from torch import Tensor

from patch_diffusion.errors import InputError


def coordinate_grid(*shape: int, device: torch.device | str | None = None) -> Float32[Tensor, "axes *shape"]:
    """Return the coordinates of every pixel of a whole image: x, y (and z of a volume).

    Coordinates run over [-1, 1]; -1 and 1 are the centres of the first and the last pixel, whatever the image's shape
    (Patch Diffusion, arXiv 2304.12526, section 3.1). An axis of a single pixel is at 0. Training crops this grid
    together with the pixels; sampling uses the whole grid.

    >>> coordinate_grid(2, 3)[0]
    tensor([[-1.,  0.,  1.],
            [-1.,  0.,  1.]])
    """
    if not shape or min(shape) < 1:
        raise ValueError(f"an image has at least one pixel along each axis, not {' x '.join(map(str, shape))}")
    return _grid([axis(length, device=device) for length in shape])


def extended_grid(
    shape: Sequence[int],
    whole: Sequence[int],
    corner: Sequence[float],
    *,
    device: torch.device | str | None = None,
) -> Float32[Tensor, "axes *shape"]:
    """Return the coordinates of a window on an image of shape ``whole``, or partly outside it.

    ``corner`` is the window's first pixel in the image, below 0 if it starts before it; coordinates may exceed [-1, 1].

    >>> extended_grid((1, 5), (1, 3), (0, -1))[0]
    tensor([[-2., -1.,  0.,  1.,  2.]])
    """
    return _grid(
        [
            (torch.arange(n, device=device) + start) * (2 / max(length - 1, 1)) - (1 if length > 1 else 0)
            for n, length, start in zip(shape, whole, corner, strict=True)
        ]
    )


def axis(num: int, *, device: torch.device | str | None = None) -> Float32[Tensor, "{num}"]:
    """Return the coordinates of ``num`` pixels along an axis, from -1 to 1; a single pixel is at 0."""
    return torch.linspace(-1, 1, num, device=device) if num > 1 else torch.zeros(1, device=device)


def patch_corners(
    places: Float[Tensor, "n axes"], size: Sequence[int], resolution: Sequence[int]
) -> Int[Tensor, "n axes"]:
    """Return the index of each patch's first pixel along every axis, on the CPU.

    Args:
        places: numbers in [0, 1), such as random ones, that choose among all positions where a patch fits.
        size: shape of the patches.
        resolution: shape of the images.

    Raises:
        InputError: a patch of this size does not fit in the images.
    """
    if len(size) != len(resolution) or not all(0 < part <= of for part, of in zip(size, resolution, strict=True)):
        patch, image = ("x".join(map(str, shape)) for shape in (size, resolution))
        raise InputError(f"a patch of {patch} does not fit an image of {image}")
    free = torch.tensor([of - part for part, of in zip(size, resolution, strict=True)])
    # Rounding may turn a place just below 1 into the number of choices itself, so the result is limited.
    return (places.cpu() * (free + 1)).long().minimum(free)


def patch_coordinates(
    corners: Int[Tensor, "n axes"], size: Sequence[int], resolution: Sequence[int]
) -> Float32[Tensor, "n axes *size"]:
    """Return the coordinates of patches, as crops of `coordinate_grid`, without making that grid.

    Args:
        corners: index of the first pixel of each patch, on the device that the result should be on.
        size: shape of the patches.
        resolution: shape of the images.
    """
    num, device = len(corners), corners.device
    lines = [
        axis(length, device=device)[first[:, None] + torch.arange(part, device=device)]
        for length, first, part in zip(resolution, corners.unbind(1), size, strict=True)
    ]
    grid = [line.view(num, *_along(place, len(size))).expand(num, *size) for place, line in enumerate(lines)]
    return torch.stack(grid[::-1], dim=-1).movedim(-1, 1)  # in channels-last memory, like the pixels


def _along(place: int, num_axes: int) -> list[int]:
    """Return the shape that puts a vector along one of several axes: -1 for that axis, and 1 for the others."""
    return [-1 if other == place else 1 for other in range(num_axes)]


def _grid(lines: Sequence[Tensor]) -> Tensor:
    return torch.stack(torch.meshgrid(*lines, indexing="ij")[::-1]).float()
