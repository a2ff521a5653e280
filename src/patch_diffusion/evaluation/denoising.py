"""Metrics of a model on held-out images: the denoising loss at each noise level, and bits per dimension."""

from __future__ import annotations

from dataclasses import replace

import torch

from patch_diffusion.data.images import Images
from patch_diffusion.data.reading.parallel import progress
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.whole_image import known_to, losses_of_images
from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.intervals import Measure, interval_of_mean
from patch_diffusion.evaluation.processes import shared
from patch_diffusion.sampling.likelihood import bits_per_dimension

MOST_DENOISED = 1000
"""The maximum number of held-out images of each size that are denoised; the first ones are taken."""

_BITS_AT_ONCE = 16


def denoising_measures(model: Denoiser, held_out: Images, *, seed: int = 0, batch: int = 64) -> dict[str, Measure]:
    """Return losses of whole held-out images by name: "denoising" over all noise levels, "denoising@0.4" at one."""
    losses = losses_of_images(model, held_out, seed=seed, batch=batch, most=MOST_DENOISED)
    num = len(next(iter(losses.values())))
    told = {} if model.context is None else {"context": model.context}  # losses compare only at equal context
    settings = {"held_out_images": num, "sigmas": list(losses), "seed": seed, **told}
    mean = torch.stack(list(losses.values())).mean(dim=0)
    measures = {"denoising": replace(interval_of_mean(mean, seed), settings=settings)}
    for sigma, values in losses.items():
        settings = {"held_out_images": num, "sigma": sigma, "seed": seed, **told}
        measures[f"denoising@{sigma:g}"] = replace(interval_of_mean(values, seed), settings=settings)
    return measures


def bits_measure(model: Denoiser, held_out: Images, num: int, *, seed: int = 0, show: bool = False) -> Measure:
    """Return the mean bits per dimension of the first ``num`` held-out images of one size; see `bits_per_dimension`.

    All are taken if there are fewer. The seed is that of the dequantization noise and of the random probes.
    """
    if len(held_out.buckets) != 1:
        raise InputError("bits are counted for images of one size, and the held-out images have several sizes")
    (images,) = known_to(model, held_out).buckets
    num = min(num, len(images))

    def bits(part: int) -> torch.Tensor:
        places = torch.arange(part * _BITS_AT_ONCE, min((part + 1) * _BITS_AT_ONCE, num))
        pixels, labels = images.batch(places.numpy())
        classes = None if labels is None else labels.tolist()
        seeds = [seed * num + place for place in places.tolist()]
        return bits_per_dimension(model, pixels, seeds=seeds, labels=classes).cpu()

    parts = -(-num // _BITS_AT_ONCE)
    found = list(progress(shared(bits, parts), parts, "bits per dimension", show=show))
    settings = {"held_out_images": num, "seed": seed, "probes": 1}
    return replace(interval_of_mean(torch.cat(found), seed), settings=settings)
