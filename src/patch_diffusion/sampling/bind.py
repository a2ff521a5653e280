"""Denoisers bound to the classes and coordinates of given images, for solvers that start from images; with checks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.threads import Shared
from patch_diffusion.errors import InputError
from patch_diffusion.patches.coords import coordinate_grid
from patch_diffusion.patches.shapes import no_multiples
from patch_diffusion.sampling.generate import jobs_of
from patch_diffusion.sampling.options import bind
from patch_diffusion.sampling.step import Denoise
from patch_diffusion.transfer import to_device


def bind_images(
    model: Denoiser, images: Tensor, labels: int | Iterable[int] | None = None, coords: Tensor | None = None
) -> Denoise:
    """Return a function ``denoise(noisy, sigma)`` bound to given images; threads share its batches.

    Args:
        model: a denoiser.
        images: (n, c, h, w) floats.
        labels: a class for all images, or one per image; None is no class.
        coords: (2, h, w) or (n, 2, h, w); None: those of the whole image.

    Raises:
        InputError: the model cannot take the images, labels or coordinates.
    """
    check_one_stage(model)
    check_denoiser(model)
    num, channels, height, width = _shape(images)
    if channels != (model.image_channels or channels):
        raise InputError(f"this model has images of {model.image_channels} channels, not {channels}")
    if height % model.stride or width % model.stride:
        raise InputError(no_multiples((height, width), model.stride))
    if coords is None:
        coords = coordinate_grid(height, width, device=model.device)
    elif coords.shape not in ((2, height, width), (num, 2, height, width)):
        raise InputError(
            f"coords of these images are (2, {height}, {width}) or ({num}, 2, {height}, {width}), "
            f"not {tuple(coords.shape)}"
        )
    return bind(Shared(model), Conditions(to_device(coords, model.device), _classes(model, labels, num)))


def check_one_stage(model: Denoiser) -> None:
    """Raise InputError if a model has a context: it samples in two stages, not by one flow from noise to images."""
    if model.context is not None:
        raise InputError(
            "this model was trained with patches.context and makes images in two stages, first a small copy and then "
            "the whole: it can be sampled, but not edited, inverted, counted in bits or exported"
        )


def check_denoiser(model: Denoiser) -> None:
    """Raise InputError if a model is made for a few steps of sampling: it no longer estimates a mean of images."""
    if model.few_steps is not None:
        raise InputError(
            f"this model was tuned for sampling in {model.few_steps} steps and is no denoiser any more: to edit, "
            "invert or count bits, take the run that it was tuned from"
        )


def _shape(images: Tensor) -> torch.Size:
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(
            f"images are floats (n, c, h, w), [-1, 1] for pixels, not {images.dtype} {tuple(images.shape)}"
        )
    return images.shape


def _classes(model: Denoiser, labels: int | Iterable[int] | None, num: int) -> Tensor | None:
    if labels is not None:
        return to_device(torch.tensor([job.label for job in jobs_of(model, range(num), labels)]), model.device)
    if model.num_classes and not model.label_dropout:
        raise InputError("this model has learned images of a class only: give labels")
    return None
