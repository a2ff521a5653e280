"""The evaluations between steps: pictures of samples, and the loss of held-out images."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from patch_diffusion.data.images import Images
from patch_diffusion.data.small import small_shape
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.whole_image import losses_of_images
from patch_diffusion.errors import NotFiniteError
from patch_diffusion.patches.schedule import PatchSchedule, Shape
from patch_diffusion.sampling.generate import generate
from patch_diffusion.sampling.options import Sampling
from patch_diffusion.training.watchdog import COLLAPSED

MOST_HELD_OUT = 64
"""Held-out images of each size that are evaluated whenever a checkpoint is written."""

LARGEST_PICTURE = 256
"""The square root of the most pixels of an image that a model with a context samples in full for pictures in training.
Of larger images it samples the small copies only."""


def sample_pictures(model: Denoiser) -> tuple[list[Tensor], int | None, str]:
    """Sample pictures (c, h, w) from fixed seeds; return those that are finite, the columns of their grid, and a text.

    The text says how many are not finite, and is empty if all are.
    """
    num = model.num_classes
    seeds = range(min(num, 10) * 2 if num else 16)
    samples = generate(model, seeds, Sampling(resolution=picture_resolution(model)))
    pictures: list[Tensor] = []
    trouble = ""
    try:
        pictures.extend(sample.visible for sample in samples)
    except NotFiniteError as error:
        trouble = str(error)
    return pictures, len(seeds) // 2 if num else None, trouble


def is_collapsed(model: Denoiser, pictures: list[Tensor]) -> bool:
    """Return True if all sampled pictures are nearly of one colour, or none is finite: training has failed."""
    least = COLLAPSED * model.sigma_data * 255 / 2
    return all(picture.float().std() < least for picture in pictures)


def held_out_losses(
    model: Denoiser, images: Images, schedule: PatchSchedule
) -> tuple[dict[float, float], dict[str, float]]:
    """Return the loss of held-out images as two dicts: of whole images by noise level, and by patch size."""
    whole = losses_of_images(model, images, most=MOST_HELD_OUT)
    by_noise = {sigma: float(losses.mean()) for sigma, losses in whole.items()}
    by_size: dict[str, list[Tensor]] = {}
    means = torch.stack(list(whole.values())).mean(dim=0)
    parts = means.split([min(len(bucket), MOST_HELD_OUT) for bucket in images.buckets])
    for bucket, of_whole in zip(images.buckets, parts, strict=True):
        by_size.setdefault("x".join(map(str, bucket.resolution)), []).append(of_whole)
        for size in schedule.sizes_for(bucket.resolution, model.stride):
            if size.shape != bucket.resolution and not size.small:
                losses = losses_of_images(model, bucket, most=MOST_HELD_OUT, size=size.shape)
                by_size.setdefault(str(size), []).append(torch.stack(list(losses.values())).mean(dim=0))
    return by_noise, {size: float(torch.cat(losses).mean()) for size, losses in by_size.items()}


def picture_resolution(model: Denoiser) -> Shape:
    """Return height and width of pictures sampled in training: those of images, or of small copies if too large."""
    resolution = model.resolution
    assert resolution is not None  # the trainer has filled it in
    if model.context is None or math.prod(resolution) <= LARGEST_PICTURE**2:
        return resolution
    return small_shape(model.context, resolution, model.stride)
