"""Operators of common restorations: linear functions of images (n, c, h, w)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from patch_diffusion.errors import InputError, finite_number, whole_number
from patch_diffusion.sampling.editing.measurement import Operator
from patch_diffusion.transfer import copied_once


def average_pooling(factor: int) -> Operator:
    """Return the operator that averages ``factor`` x ``factor`` pixels, as a sensor with larger pixels does."""
    if whole_number("the factor of super-resolution", factor) < 2:
        raise InputError(f"the factor of super-resolution is a whole number of at least 2, not {factor}")
    return lambda images: F.avg_pool2d(images, factor)


def gaussian_blur(deviation: float, resolution: tuple[int, int]) -> Operator:
    """Return the operator that blurs by a Gaussian of this standard deviation in pixels, mirroring the image's edges.

    Raises:
        InputError: the deviation is not above 0, or so large that the blur is wider than the image.
    """
    if not finite_number("the standard deviation of a blur", deviation) > 0:
        raise InputError(f"the standard deviation of a blur is above 0 pixels, not {deviation}")
    reach = 3 * deviation
    if reach > min(resolution) - 1:
        raise InputError(
            f"a blur of {deviation:g} pixels reaches {reach:g} pixels far, beyond an image of "
            f"{resolution[0]}x{resolution[1]}"
        )
    radius = math.ceil(reach)
    place = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (place / deviation) ** 2)
    kernel = copied_once(kernel / kernel.sum())

    def blur(images: Tensor) -> Tensor:
        channels, weights = images.shape[1], kernel(images)
        padded = F.pad(images, (radius,) * 4, mode="reflect")
        rows = F.conv2d(padded, weights.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)
        return F.conv2d(rows, weights.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)

    return blur
