"""Common edits and restorations as measurements of the image that is to be made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated as Bool, Annotated as Shaped, Any

import torch
from torch import Tensor

from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError, did_you_mean, whole_number
from patch_diffusion.sampling.editing.image import pixel_codec
from patch_diffusion.sampling.editing.measurement import Measurement
from patch_diffusion.sampling.editing.operators import average_pooling, gaussian_blur
from patch_diffusion.transfer import copied_once

Picture = Shaped[Tensor, "c h w"]
"""Pixels in the dtype of the data."""

SIDES = ("left", "right", "top", "bottom")

Mask = Bool[Tensor, "height width"]
"""True where an image is to be filled; its size is checked, as a user may give the mask of another image."""


def inpainting(image: Picture, mask: Mask, *, inside: tuple[int, int, int, int] | None = None) -> Measurement:
    """Return the measurement for filling in a mask: all other pixels are known exactly.

    Args:
        image: pixels in the dtype of the data.
        mask: True where the image is to be filled.
        inside: for an image that was extended, see `Measurement`.

    Raises:
        InputError: the mask has another size, or covers nothing or everything.

    >>> inpainting(torch.zeros(3, 8, 8), torch.arange(64).view(8, 8) < 16).shape
    (3, 8, 8)
    """
    if mask.shape != image.shape[1:]:
        raise InputError(f"the mask is {_size(mask)} and the image {_size(image)}: they must be of the same size")
    if not mask.any():
        raise InputError("the mask is empty: make white what is to be filled")
    if mask.all():
        raise InputError("the mask covers the whole image, so nothing of it is known: to make one anew, use sample")
    known = ~mask
    weights = known.float()
    values, weighing = image.float() * weights, copied_once(weights)
    return Measurement(values, lambda images: images * weighing(images), _shape(image), kept=(image, known),
                       inside=inside, settings={"filled": float(mask.float().mean())})  # fmt: skip


def outpainting(image: Picture, extend: Mapping[str, int], mask: Mask | None = None) -> Measurement:
    """Return the measurement for extending an image: the given one lies within the larger one.

    Args:
        image: pixels in the dtype of the data.
        extend: pixels to add at the "left", "right", "top" and "bottom".
        mask: True where the image itself is to be filled, too.

    Raises:
        InputError: a side is unknown, or there are fewer than 0 pixels or none at all.

    >>> outpainting(torch.zeros(3, 8, 8), {"left": 4}).shape
    (3, 8, 12)
    """
    for side, pixels in extend.items():
        if side not in SIDES:
            raise InputError(f"an image has no side '{side}'{did_you_mean(side, SIDES)}")
        if whole_number("what an image is extended by", pixels) < 0:
            raise InputError(f"an image is extended by at least 0 pixels, not {pixels} at the {side}")
    left, right, top, bottom = (extend.get(side, 0) for side in SIDES)
    if not left + right + top + bottom:
        raise InputError("an image is extended by pixels at a side, as in left=32: none are given")
    if mask is not None and mask.shape != image.shape[1:]:
        raise InputError(f"the mask is {_size(mask)} and the image {_size(image)}: they must be of the same size")
    channels, height, width = image.shape
    canvas = image.new_zeros(channels, top + height + bottom, left + width + right)
    canvas[:, top : top + height, left : left + width] = image
    fill = torch.ones(canvas.shape[1:], dtype=torch.bool)
    fill[top : top + height, left : left + width] = False if mask is None else mask
    made = inpainting(canvas, fill, inside=(top, left, height, width))
    made.settings["extend"] = {side: pixels for side, pixels in extend.items() if pixels}
    return made


def super_resolution(model: Denoiser, image: Picture, *, factor: int = 2, noise: float | None = None) -> Measurement:
    """Return the measurement for super-resolution: each known pixel is the mean of ``factor`` x ``factor`` new ones.

    ``noise`` is the standard deviation of the noise in the values of the pixels; None: that of rounding.

    >>> known = super_resolution(model, small, factor=2)  # doctest: +SKIP
    """
    channels, height, width = image.shape
    operator = average_pooling(factor)
    noise = rounding(model) if noise is None else noise
    settings = {"restore": "super-resolution", "factor": factor, "noise": noise}
    shape = (channels, height * factor, width * factor)
    return Measurement(image.float(), operator, shape, noise, settings=settings)


def deblurring(model: Denoiser, image: Picture, *, blur: float, noise: float | None = None) -> Measurement:
    """Return the measurement for deblurring an image that was blurred by a Gaussian.

    ``blur`` is its standard deviation in pixels, and ``noise`` is as for `super_resolution`.

    >>> known = deblurring(model, image, blur=1.5)  # doctest: +SKIP
    """
    noise = rounding(model) if noise is None else noise
    settings = {"restore": "deblur", "blur": blur, "noise": noise}
    operator = gaussian_blur(blur, (image.shape[1], image.shape[2]))
    return Measurement(image.float(), operator, _shape(image), noise, settings=settings)


def denoising(image: Picture, *, noise: float) -> Measurement:
    """Return the measurement for denoising an image with normal noise of standard deviation ``noise``, in pixel values.

    >>> denoising(torch.zeros(3, 8, 8), noise=25).shape
    (3, 8, 8)
    """
    if not noise > 0:
        raise InputError(f"the noise that is to be taken away has a standard deviation above 0, not {noise}")
    settings: dict[str, Any] = {"restore": "denoise", "noise": noise}
    return Measurement(image.float(), lambda images: images, _shape(image), noise, settings=settings)


def rounding(model: Denoiser) -> float:
    """Return the standard deviation of rounding pixels to integers; of floats, a thousandth of half their range."""
    codec = pixel_codec(model)
    low, high = codec.range
    return 12**-0.5 if codec.dtype != "float32" else 1e-3 * (high - low) / 2


def _shape(image: Tensor) -> tuple[int, int, int]:
    channels, height, width = image.shape
    return channels, height, width


def _size(image: Tensor) -> str:
    return f"{image.shape[-2]}x{image.shape[-1]}"
