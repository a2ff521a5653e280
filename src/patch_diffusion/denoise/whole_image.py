"""The denoising loss of whole images, or of patches of them, the simplest measure to compare two models by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated as Float64

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patch_diffusion.data.images import Images, ImageSet, numbered_as, with_columns, with_inputs
from patch_diffusion.data.paired import around_of, shown_as
from patch_diffusion.data.small import make_small, small_input, small_shape
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.denoiser import Denoiser, evaluating
from patch_diffusion.denoise.objective import denoising_loss
from patch_diffusion.denoise.threads import Shared, sharing
from patch_diffusion.errors import InputError
from patch_diffusion.patches.coords import coordinate_grid
from patch_diffusion.patches.crop import random_patches
from patch_diffusion.streams import generator, slot_normal
from patch_diffusion.transfer import to_device

SIGMAS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
"""Noise levels, from one that hides only the texture of images to one that leaves only their layout, for images of
deviation 0.5 and up to 64 pixels; for others a run has ``noise.levels``."""

_NAMED = 5  # most classes that an error names


def whole_image_loss(
    model: Denoiser,
    images: Images,
    *,
    sigmas: Sequence[float] | None = None,
    seed: int = 0,
    batch: int = 64,
    most: int | None = None,
) -> dict[float, float]:
    """Return the mean denoising loss of whole images at each noise level, as a dict by level, with fixed noise.

    Images that the model was not trained on show how well it has learned. The noise of an image depends only on the
    seed, the image's index and the level, so two models are compared on the same noise. A model with a ``context`` is
    given small copies of the images, which reveal much: its losses cannot be compared with those of one without.

    Args:
        model: the denoiser.
        images: whole images.
        sigmas: noise levels; None: the model's own, see `Denoiser`.
        seed: seed of the noise.
        batch: number of images at a time.
        most: number of images of each bucket (images of one size) to use, the first ones; None uses all.

    Raises:
        InputError: the model takes another number of channels.

    >>> losses = whole_image_loss(load("runs/digits"), open_images("digits"), sigmas=(0.1, 1.0), most=10)
    >>> list(losses)
    [0.1, 1.0]
    """
    losses = losses_of_images(model, images, sigmas=sigmas, seed=seed, batch=batch, most=most)
    return {sigma: float(each.mean()) for sigma, each in losses.items()}


def losses_of_images(
    model: Denoiser,
    images: Images,
    *,
    sigmas: Sequence[float] | None = None,
    seed: int = 0,
    batch: int = 64,
    most: int | None = None,
    size: tuple[int, ...] | None = None,
) -> dict[float, Float64[Tensor, "n"]]:
    """Return each image's denoising loss, on the CPU, by noise level; see `whole_image_loss`.

    With a ``size`` (height, width), the loss is that of a patch of each image, at a position determined by the seed.
    """
    if images.channels != model.image_channels:
        raise InputError(f"the model takes {model.image_channels} channels, but the images have {images.channels}")
    sigmas = sigmas or model.levels or SIGMAS
    images = known_to(model, images)
    losses: dict[float, list[Tensor]] = {float(sigma): [] for sigma in sigmas}
    with evaluating(model), sharing(model), torch.inference_mode():
        first = 0
        for bucket in images.buckets:
            num = len(bucket) if most is None else min(most, len(bucket))
            batches = _batches(model, bucket, num, first, size or bucket.resolution, seed, batch)
            for places, clean, conditions in batches:
                for level, (sigma, found) in enumerate(losses.items()):
                    noise = to_device(
                        slot_normal(seed, "evaluation", level, places, tuple(clean.shape[1:])), model.device
                    )
                    levels = torch.full((len(clean),), sigma, device=model.device)
                    found.append(denoising_loss(Shared(model), clean, conditions, levels, noise=noise).cpu().double())
            first += len(bucket)
    return {sigma: torch.cat(each) for sigma, each in losses.items()}


def known_to(model: Denoiser, images: Images) -> Images:
    """Return images with the labels and attributes as the model knows them; without any that it does not know.

    Raises:
        InputError: an image has a class or a category that the model does not know.
    """
    images = with_inputs(with_columns(images, model.columns), model.inputs)
    found = numbered_as(images, model.class_names, model.num_classes)
    if found is None:
        known = ", ".join(model.class_names[:_NAMED]) or f"0 to {model.num_classes - 1}"
        more = ", ..." if len(model.class_names) > _NAMED else ""
        raise InputError(f"the images have classes that the model does not know: give images of its own, {known}{more}")
    return found


def _batches(
    model: Denoiser, images: ImageSet, num: int, first: int, shape: tuple[int, ...], seed: int, batch: int
) -> Iterator[tuple[range, Tensor, Conditions]]:
    """Yield ``num`` images of one size, or patches, with their indices in all images, the first of which is given."""
    device = model.device
    whole = coordinate_grid(*images.resolution, device=device)
    where = torch.rand(num, len(shape), generator=generator(seed, "places of patches", first))
    for start in range(0, num, batch):
        slots = range(start, min(start + batch, num))
        pixels, labels = images.batch(np.asarray(slots, np.int64))
        pixels, coords, thumbnail = to_device(pixels, device), whole, None
        places = where[slots.start : slots.stop]
        inputs, around = _inputs(model, images, np.asarray(slots, np.int64), shape, places)
        if model.context is not None:
            small = small_shape(model.context, images.resolution, model.stride)
            thumbnail = make_small(images.codec.encode(pixels), small)
        if shape != images.resolution:
            patch = random_patches(pixels, shape, places=places)
            pixels, coords = patch.pixels, patch.coords
        told = images.attributes_of(np.asarray(slots, np.int64)) if model.attribute_channels else None
        conditions = Conditions(
            coords,
            None if labels is None else to_device(labels, device),
            thumbnail=thumbnail,
            attributes=None if told is None else to_device(told, device),
            inputs=inputs,
            around=around,
        )
        yield range(first + slots.start, first + slots.stop), images.codec.encode(pixels), conditions


def _inputs(
    model: Denoiser, images: ImageSet, indices: NDArray[np.int64], shape: tuple[int, ...], places: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Return the paired inputs of images, or of patches of them, and small copies of the whole ones; None without."""
    if not model.paired_channels or not images.paired:
        return None, None
    given = to_device(images.inputs_given(indices), model.device)
    shown: list[Tensor] = []
    small: list[Tensor] = []
    for place, about in enumerate(images.inputs):
        pixels = to_device(images.input_images(place).batch(indices)[0], model.device)
        small.append(small_input(about, pixels))
        pixels = pixels if shape == images.resolution else random_patches(pixels, shape, places=places).pixels
        shown.append(about.encode(pixels))
    return shown_as(shown, given), around_of(small, given)
