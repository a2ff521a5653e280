"""What a model does with images that it was not trained on: the loss at each noise level, and bits per dimension."""

from __future__ import annotations

import torch

from patch_diffusion.data.images import Images
from patch_diffusion.data.reading.parallel import progress
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.whole_image import losses_of_images
from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.intervals import Measure, interval_of_mean
from patch_diffusion.evaluation.processes import shared
from patch_diffusion.sampling.likelihood import bits_per_dimension

MOST_DENOISED = 1000
"""Images of each size that are denoised, the first ones."""

_BITS_AT_ONCE = 16


def denoising_measures(model: Denoiser, held_out: Images, *, seed: int = 0, batch: int = 64) -> dict[str, Measure]:
    """The loss of whole held-out images, "denoising" its mean over the levels, "denoising@0.4" that of one."""
    losses = losses_of_images(model, held_out, seed=seed, batch=batch, most=MOST_DENOISED)
    num = len(next(iter(losses.values())))
    told = {} if model.context is None else {"context": model.context}  # which makes it another measure
    settings = {"held_out_images": num, "sigmas": list(losses), "seed": seed, **told}
    mean = torch.stack(list(losses.values())).mean(dim=0)
    found = interval_of_mean(mean, seed)
    measures = {"denoising": Measure(found.value, found.low, found.high, settings)}
    for sigma, values in losses.items():
        found = interval_of_mean(values, seed)
        measures[f"denoising@{sigma:g}"] = Measure(
            found.value, found.low, found.high, {"held_out_images": num, "sigma": sigma, "seed": seed, **told}
        )
    return measures


def bits_measure(model: Denoiser, held_out: Images, num: int, *, seed: int = 0, show: bool = False) -> Measure:
    """Bits per dimension of the first held-out images, of all where there are fewer; see `bits_per_dimension`.

    Args:
        model: with pixels that are whole numbers.
        held_out: of one size.
        num: images.
        seed: another one takes other places in the bins and other probes.
        show: a progress bar, on a terminal.
    """
    if len(held_out.buckets) != 1:
        raise InputError("bits are counted of images of one size, and the held-out ones have several")
    (images,) = held_out.buckets
    num = min(num, len(images))

    def bits(part: int) -> torch.Tensor:
        places = torch.arange(part * _BITS_AT_ONCE, min((part + 1) * _BITS_AT_ONCE, num))
        pixels, labels = images.batch(places.numpy())
        classes = labels.tolist() if labels is not None and model.num_classes else None
        seeds = [seed * num + place for place in places.tolist()]
        return bits_per_dimension(model, pixels, seeds=seeds, labels=classes).cpu()

    parts = -(-num // _BITS_AT_ONCE)
    found = list(progress(shared(bits, parts), parts, "bits per dimension", show=show))
    measured = interval_of_mean(torch.cat(found), seed)
    return Measure(measured.value, measured.low, measured.high, {"held_out_images": num, "seed": seed, "probes": 1})
