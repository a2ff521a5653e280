"""Measures of images that are made from paired inputs, against the true ones: held-out images and their own inputs.

Several images are made from each input. A single one is compared with the truth, and so is their mean, which is nearer
to it and less sharp. How far they differ among each other should be how far their mean is from the truth: spread over
skill is 1 then, and the truth is as often above as below any of them, so that the histogram of its ranks is flat.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated as Float, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.data.images import Images, with_columns, with_inputs
from patch_diffusion.data.reading.parallel import progress
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.intervals import Measure, interval_of_mean
from patch_diffusion.sampling.generate import generate
from patch_diffusion.sampling.options import Sampling
from patch_diffusion.streams import generator

_WINDOW, _SIGMA, _K = 11, 1.5, (0.01, 0.03)  # of SSIM: Wang et al. 2004, IEEE TIP 13


def paired_measures(
    model: Denoiser,
    held_out: Images,
    *,
    images: int,
    members: int,
    sampling: Sampling,
    seed: int = 0,
    show: bool = False,
) -> dict[str, Measure]:
    """Return measures of the images that a model makes from held-out inputs, by name.

    They are "psnr" in decibels, "ssim" and "crps" of pixels from 0 to 1 (of single images), "psnr_of_mean" and
    "ssim_of_mean" (of the mean of all from one input), and "spread_skill". The settings of the last have the histogram
    of the ranks of the truth, ``members + 1`` shares.

    Args:
        model: a model of paired images.
        held_out: images that it was not trained on, with their inputs.
        images: the number of held-out images, the first ones.
        members: the number of images that are made from each input, at least 2.
        sampling: how they are made.
        seed: the seed; member m of image k has the seed ``(seed * images + k) * members + m``.
        show: a progress bar on a terminal.

    Raises:
        InputError: the images have several sizes, or are latents.
    """
    if members < 2:
        raise InputError(f"at least 2 images are made from each input, not {members}", option="members")
    codec = held_out.codec
    if len(held_out.buckets) != 1 or not isinstance(codec, PixelCodec):
        raise InputError("images of pairs are measured where all are pixels of one size")
    (bucket,) = with_inputs(with_columns(held_out, model.columns), model.inputs).buckets
    low, high = codec.range
    num = min(images, len(bucket))
    found: dict[str, list[float]] = {}
    ranks = torch.zeros(members + 1, dtype=torch.float64)
    for place in progress(range(num), num, "images from inputs", show=show):
        index = np.array([place])
        truth = (bucket.batch(index)[0][0].double() - low) / (high - low)
        made = (_made(model, bucket, index, members, sampling, (seed * num + place) * members) - low) / (high - low)
        mean = made.mean(dim=0)
        squared = (made - truth).square().flatten(1).mean(dim=1)
        numbers = {
            "psnr": float((-10 * squared.clamp(min=1e-12).log10()).mean()),
            "ssim": float(ssim(made, truth.expand_as(made)).mean()),
            "crps": float(crps(made, truth).mean()),
            "psnr_of_mean": float(-10 * (mean - truth).square().mean().clamp(min=1e-12).log10()),
            "ssim_of_mean": float(ssim(mean[None], truth[None])[0]),
            "skill": float((mean - truth).square().mean()),
            "spread": float(made.var(dim=0).mean()) * (members + 1) / members,
        }
        for name, number in numbers.items():
            found.setdefault(name, []).append(number)
        ranks += rank_histogram(made, truth, generator(seed, "ranks", place))
    settings: dict[str, Any] = {"held_out_images": num, "members": members, "seed": seed}
    skill, spread = (torch.tensor(found.pop(name), dtype=torch.float64).mean() for name in ("skill", "spread"))
    measures = {
        name: replace(interval_of_mean(torch.tensor(values), seed), settings=settings) for name, values in found.items()
    }
    ratio = float((spread / skill.clamp(min=1e-12)).sqrt())
    shares = (ranks / ranks.sum()).tolist()
    measures["spread_skill"] = Measure(ratio, settings={**settings, "ranks": shares})
    order = ("psnr", "psnr_of_mean", "ssim", "ssim_of_mean", "crps", "spread_skill")
    return {name: measures[name] for name in order}


def ssim(one: Float[Tensor, "n c h w"], other: Float[Tensor, "n c h w"]) -> Float[Tensor, "n"]:
    """Return the structural similarity of images with values from 0 to 1, with a Gaussian window of 11 pixels.

    Smaller images have a smaller window. Only places where the whole window is inside count.
    """
    side = min(_WINDOW, *one.shape[2:])
    line = torch.arange(side, dtype=one.dtype) - (side - 1) / 2
    weights = (-(line**2) / (2 * _SIGMA**2)).exp()
    weights = weights / weights.sum()
    kernel = torch.outer(weights, weights).expand(one.shape[1], 1, side, side)

    def smoothed(images: Tensor) -> Tensor:
        return F.conv2d(images, kernel, groups=images.shape[1])

    mean, mean_other = smoothed(one), smoothed(other)
    variance, variance_other = smoothed(one * one) - mean**2, smoothed(other * other) - mean_other**2
    covariance = smoothed(one * other) - mean * mean_other
    light, contrast = (k**2 for k in _K)
    found = (2 * mean * mean_other + light) * (2 * covariance + contrast)
    found = found / ((mean**2 + mean_other**2 + light) * (variance + variance_other + contrast))
    return found.flatten(1).mean(dim=1)


def crps(members: Float[Tensor, "m *shape"], truth: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the continuous ranked probability score of an ensemble at each pixel, without bias of its size.

    E|x - y| - E|x - x'| / 2 with x' of the other members (Ferro 2014, QJRMS 140); of one number it is the error.
    """
    num = len(members)
    ordered = members.sort(dim=0).values
    weights = torch.arange(1 - num, num, 2, dtype=members.dtype).view(-1, *[1] * truth.ndim)
    apart = (ordered * weights).sum(dim=0) / (num * (num - 1))
    return (members - truth).abs().mean(dim=0) - apart


def rank_histogram(
    members: Float[Tensor, "m *shape"], truth: Float[Tensor, "*shape"], random: torch.Generator
) -> Float[Tensor, "bins"]:
    """Return how often the truth has each rank among the members, over all pixels; ties are broken at random."""
    below, equal = (members < truth).sum(dim=0), (members == truth).sum(dim=0)
    ranks = below + (torch.rand(truth.shape, generator=random) * (equal + 1)).long()
    return torch.bincount(ranks.flatten(), minlength=len(members) + 1).double()


def _made(model: Denoiser, bucket: Any, index: Any, members: int, sampling: Sampling, first: int) -> Tensor:
    """Return images (members, c, h, w) that are made from the inputs, class and conditions of one image."""
    given = bucket.inputs_given(index)[0].tolist()
    pixels = [bucket.input_images(number).batch(index)[0][0] for number in range(len(bucket.paired))]
    paired = tuple(each if there else None for each, there in zip(pixels, given, strict=True))
    labels = bucket.labels_of(index)
    told: dict[str, Any] = {"labels": int(labels[0]) if labels is not None and model.num_classes else None}
    if bucket.attributes is not None and model.columns:
        told["conditions"] = bucket.attributes.named(int(bucket.rows(index)[0]))
    samples = generate(model, range(first, first + members), sampling, paired=paired, **told)
    return torch.stack([sample.pixels.double() for sample in samples])
