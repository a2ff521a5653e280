"""The evaluations between steps: pictures of samples, and the loss of held-out images."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from patch_diffusion.data.attributes import by_name
from patch_diffusion.data.images import Images
from patch_diffusion.data.small import small_shape
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.whole_image import losses_of_images
from patch_diffusion.evaluation.samples import conditions_like, inputs_like
from patch_diffusion.patches.schedule import PatchSchedule, Shape
from patch_diffusion.sampling.generate import generate
from patch_diffusion.sampling.options import Sampling
from patch_diffusion.training.watchdog import COLLAPSED

MOST_HELD_OUT = 64
"""Held-out images of each size that are evaluated whenever a checkpoint is written."""

EVALUATIONS = 35
"""Evaluations of the network for each sample in a picture, but for models that sample in a few steps."""

_TIMED, _FEW_HELD_OUT = 16, 4  # samples, and held-out images, that are timed together

LARGEST_PICTURE = 256
"""The square root of the most pixels of an image that a model with a context samples in full for pictures in training.
Of larger images it samples the small copies only."""


def num_pictures(model: Denoiser) -> int:
    """Return the number of samples in a picture: two of each class, of ten classes at most, or 16."""
    return min(model.num_classes, 10) * 2 or 16


def sample_pictures(model: Denoiser, num: int, images: Images) -> tuple[list[Tensor], int | None]:
    """Sample ``num`` pictures (c, h, w) from fixed seeds; return them and the number of columns for their grid.

    A model that is told conditions or shown inputs is given those of some of the ``images``, always the same.
    """
    told = by_name(model.columns, conditions_like(images, model, num, 0) or [])
    paired, sampling = inputs_like(images, model, num, 0), Sampling(resolution=picture_resolution(model))
    samples = generate(model, range(num), sampling, conditions=told, paired=paired)
    return [sample.visible for sample in samples], min(model.num_classes, 10) or None


def is_collapsed(model: Denoiser, pictures: list[Tensor]) -> bool:
    """Return True if all sampled pictures are nearly of one colour, or none is finite: training has failed.

    A network that predicts the clean image begins with pictures of one colour, so theirs are no sign of a failure.
    """
    lowest = torch.tensor(model.sigma_min)
    if not model.process.preconditioning(lowest, model.sigma_data).c_skip:
        return False
    least = COLLAPSED * model.sigma_data * 255 / 2
    return all(picture.float().std() < least for picture in pictures)


def held_out_losses(
    model: Denoiser, images: Images, schedule: PatchSchedule, most: int = MOST_HELD_OUT
) -> tuple[dict[float, float], dict[str, float]]:
    """Return the loss of ``most`` held-out images of each size: of whole images by noise level, and by patch size."""
    whole = losses_of_images(model, images, most=most)
    by_noise = {sigma: float(losses.mean()) for sigma, losses in whole.items()}
    by_size: dict[str, list[Tensor]] = {}
    means = torch.stack(list(whole.values())).mean(dim=0)
    parts = means.split([min(len(bucket), most) for bucket in images.buckets])
    for bucket, of_whole in zip(images.buckets, parts, strict=True):
        by_size.setdefault("x".join(map(str, bucket.resolution)), []).append(of_whole)
        for size in schedule.sizes_for(bucket.resolution, model.stride):
            if size.shape != bucket.resolution and not size.small:
                losses = losses_of_images(model, bucket, most=most, size=size.shape)
                by_size.setdefault(str(size), []).append(torch.stack(list(losses.values())).mean(dim=0))
    return by_noise, {size: float(torch.cat(losses).mean()) for size, losses in by_size.items()}


def seconds_per_picture(model: Denoiser) -> float:
    """Time the network on samples of a picture, and return the seconds that each takes with the default sampling."""
    sampling = Sampling(steps=1, resolution=picture_resolution(model))
    list(generate(model, range(2), sampling))
    began = time.monotonic()
    list(generate(model, range(_TIMED), sampling))
    return (model.few_steps or EVALUATIONS) * (time.monotonic() - began) / _TIMED


def seconds_per_held_out(model: Denoiser, images: Images, schedule: PatchSchedule) -> float:
    """Time the losses of a few held-out images, and return the seconds that each takes, of every size of the data."""
    held_out_losses(model, images, schedule, 1)
    began = time.monotonic()
    held_out_losses(model, images, schedule, _FEW_HELD_OUT)
    return (time.monotonic() - began) / _FEW_HELD_OUT


def picture_resolution(model: Denoiser) -> Shape:
    """Return height and width of pictures sampled in training: those of images, or of small copies if too large."""
    resolution = model.resolution
    assert resolution is not None  # the trainer has filled it in
    if model.context is None or math.prod(resolution) <= LARGEST_PICTURE**2:
        return resolution
    return small_shape(model.context, resolution, model.stride)
