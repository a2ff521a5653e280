"""Likelihood of images under a model: the probability-flow ODE as a normalising flow (score-SDE, arXiv 2011.13456)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated as Float, Annotated as Shaped

import torch
from torch import Tensor

from patch_diffusion.data.codec import DTYPES, PixelCodec, check_finite
from patch_diffusion.denoise.denoiser import Denoiser, evaluating
from patch_diffusion.errors import InputError, finite_number, need
from patch_diffusion.sampling.bind import bind_images
from patch_diffusion.sampling.solvers import wide
from patch_diffusion.sampling.step import Denoise
from patch_diffusion.streams import generator


def bits_per_dimension(
    model: Denoiser,
    pixels: Shaped[Tensor, "n c h w"],
    *,
    seeds: Sequence[int] | None = None,
    labels: int | Iterable[int] | None = None,
    coords: Tensor | None = None,
    probes: int = 1,
    tolerance: float = 1e-5,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Float[Tensor, "n"]:
    """Return the bits that images would take per channel of a pixel if the model coded them; less is better.

    They are -log2 p(x) / d + log2(255 / 2) for an image of d numbers, where x is the image with its 256 levels spread
    evenly over their bins in model space, x = 2 (pixels + u - 1/2) / 255 - 1 with u uniform in [0, 1), 2 / 255 is the
    width of a bin, and p is the density at sigma_min to which the ODE takes the prior N(mean, sigma_max^2), see
    `log_density`. The mean over u is an upper bound of the bits of the image itself (Theis et al., arXiv 1511.01844,
    section 3.1). Papers often take bins of 2 / 256, which makes it 0.006 bits more. For whole numbers other than 8-bit
    ones, 255 is the range of the model's codec.

    Args:
        model: from `load`, or any `Denoiser`.
        pixels: uint8 unless the model was trained on others.
        seeds: one per image; None: 0, 1, ... The u and the probes of an image follow from its seed alone.
        labels, coords, sigma_min, sigma_max: as for `encode`.
        probes: the number of random directions in which the divergence is measured; the estimate is unbiased, and more
            probes make it less noisy and slower.
        tolerance: the relative and absolute tolerance of the ODE's solution.

    Returns:
        The bits, float64 if the device has it.

    Raises:
        InputError: images or settings do not suit the model, or torchdiffeq is not installed.
        NotFiniteError: the bits of some images are not finite.

    >>> images = open_images("digits").buckets[0].pixels[:2]
    >>> bits_per_dimension(load("runs/digits"), images, tolerance=0.1).shape
    torch.Size([2])
    """
    codec = model.codec
    if not isinstance(codec, PixelCodec) or codec.dtype == "float32":
        raise InputError(
            "bits are counted for pixels that are whole numbers, and this model has floats: see log_density"
        )
    if pixels.dtype != DTYPES[codec.dtype]:
        raise InputError(f"the pixels of this model are {codec.dtype}, not {pixels.dtype}")
    if probes < 1:
        raise InputError(f"at least 1 probe is needed, not {probes}")
    seeds = range(len(pixels)) if seeds is None else [int(seed) for seed in seeds]
    if len(seeds) != len(pixels):
        raise InputError(f"{len(pixels)} images need as many seeds, not {len(seeds)}")
    shape = pixels.shape[1:]
    inside = torch.stack([torch.rand(shape, generator=generator(seed, "dequantisation")) for seed in seeds])
    signs = torch.stack([torch.randint(2, (probes, *shape), generator=generator(seed, "probes")) for seed in seeds], 1)
    bin_width = 2 / (codec.range[1] - codec.range[0])  # between neighbours of the levels in [-1, 1]
    images = (codec.encode(pixels.cpu()) + bin_width * (inside - 0.5)).to(model.device, wide(model.device))
    denoise = bind_images(model, images, labels, coords)
    lowest = model.sigma_min if sigma_min is None else sigma_min
    highest = model.sigma_max if sigma_max is None else sigma_max
    with evaluating(model):
        nats = log_density(
            denoise,
            images,
            2 * signs.to(images) - 1,
            sigma_min=lowest,
            sigma_max=highest,
            tolerance=tolerance,
            mean=model.centre(images),
        )
    check_finite(nats[:, None])
    return -(nats / shape.numel() + math.log(bin_width)) / math.log(2)


def log_density(
    denoise: Denoise,
    images: Float[Tensor, "n c h w"],
    probes: Float[Tensor, "k n c h w"],
    *,
    sigma_min: float,
    sigma_max: float,
    tolerance: float = 1e-5,
    mean: Tensor | float = 0.0,
) -> Float[Tensor, "n"]:
    """Return ln p(x) of images in model space, in nats, in the dtype of the images.

    In l = ln(sigma) the ODE is dx/dl = x - D(x; sigma), and by the instantaneous change of variables

        ln p(x) = ln N(x(sigma_max); mean, sigma_max^2) + integral from ln(sigma_min) to ln(sigma_max) of div(x - D) dl

    (score-SDE, arXiv 2011.13456, equation 39). So p is the density of the images at sigma_min, a level that should be
    small beside the details, under an exact ODE solver from the noise that sampling starts from. The divergence is the
    mean of e^T J e over the probes e (Hutchinson's estimate).

    Args:
        denoise: ``denoise(noisy, sigma)``, differentiable.
        images: in the dtype of the computation.
        probes: independent numbers of mean 0 and variance 1; signs, 1 or -1, vary least.
        sigma_min, sigma_max: range of noise levels.
        tolerance: the relative and absolute tolerance of the solution of every image.
        mean: the mean of the noise that sampling starts from, which can be added to images.

    Raises:
        InputError: the levels or the tolerance are out of range, or torchdiffeq is not installed.

    >>> def denoise(noisy, sigma):  # where the data are normal numbers of variance 1
    ...     return noisy / (1 + sigma**2)
    >>> images, signs = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 1, 2, 2)
    >>> log_density(denoise, images, signs, sigma_min=1e-3, sigma_max=1e3).round(decimals=2)  # -2 ln(2 pi)
    tensor([-3.6800])
    """
    odeint = need("torchdiffeq", "likelihood", "a likelihood").odeint
    for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max), ("the tolerance", tolerance)):
        finite_number(name, value)
    if not 0 < sigma_min < sigma_max:
        raise InputError(f"noise levels must be 0 < sigma_min < sigma_max, not {sigma_min} and {sigma_max}")
    if not tolerance > 0:
        raise InputError(f"the tolerance is above 0, not {tolerance}")
    num_dimensions = images[0].numel()

    def slopes(level: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            noisy = state[0].detach().requires_grad_()
            slope = noisy - denoise(noisy, level.exp())
            turned = [torch.autograd.grad(slope, noisy, probe, retain_graph=True)[0] for probe in probes]
        # Per number, so that the tolerance means the same for images of any size.
        return slope.detach(), (torch.stack(turned) * probes).flatten(2).mean(dim=(0, 2))

    levels = torch.tensor([math.log(sigma_min), math.log(sigma_max)], dtype=images.dtype, device=images.device)
    with torch.no_grad():
        ends, divergences = odeint(
            slopes,
            (images, images.new_zeros(len(images))),
            levels,
            rtol=tolerance,
            atol=tolerance,
            method="dopri5",
            options={"norm": _largest, "dtype": wide(images.device)},
        )
    prior = -0.5 * ((ends[-1] - mean) / sigma_max).square().flatten(1).sum(1) - num_dimensions * (
        math.log(sigma_max) + 0.5 * math.log(2 * math.pi)
    )
    return prior + num_dimensions * divergences[-1]


def _largest(state: tuple[Tensor, Tensor]) -> Tensor:
    """Return the error of the worst image, so that an image is solved to the tolerance in any batch."""
    images, divergences = state
    return torch.maximum(images.flatten(1).square().mean(1).sqrt().max(), divergences.abs().max())
