"""Inversion along the probability-flow ODE: images to noise and back (score-SDE, arXiv 2011.13456, section 4.3).

The ODE dx/dsigma = (x - D(x; sigma)) / sigma takes every image to one noise and every noise to one image.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated as Float

import torch
from torch import Tensor

from patch_diffusion.data.codec import check_finite
from patch_diffusion.denoise.denoiser import Denoiser, evaluating
from patch_diffusion.denoise.threads import sharing
from patch_diffusion.errors import InputError
from patch_diffusion.sampling.bind import bind_images
from patch_diffusion.sampling.options import Sampling
from patch_diffusion.sampling.solvers import wide
from patch_diffusion.sampling.stochastic import OF_EACH


def encode(
    model: Denoiser,
    images: Tensor,
    *,
    labels: int | Iterable[int] | None = None,
    coords: Tensor | None = None,
    steps: int = 64,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float | None = None,
) -> Float[Tensor, "n c h w"]:
    """Return the noise that images come from: (x - mean) / sigma_max after Heun's method up to sigma_max.

    The images are taken as images at sigma_min, without adding noise. Images such as the model makes become standard
    normal numbers, and `decode` takes these back to the images: for interpolation, for editing, or for a look at how
    the model sees an image.

    Args:
        model: from `load`, or any `Denoiser`.
        images: (n, c, h, w) floats in model space, [-1, 1] for pixels; all at once, so give as many as fit.
        labels: a class for all images, or one per image; None is no class.
        coords: (2, h, w) or (n, 2, h, w); None: those of the whole image.
        steps: the number of noise levels, at least 2; the network is evaluated 2 * steps - 2 times.
        sigma_min, sigma_max, rho: noise levels, see `Sampling`; None: the model's own.

    Returns:
        The noise, float64 if the device has it.

    Raises:
        InputError: images or settings do not suit the model.
        NotFiniteError: the noise of some images is not finite.

    >>> model = Denoiser(lambda x, c_noise, labels: x[:, :3])
    >>> encode(model, torch.zeros(2, 3, 8, 12), steps=4).shape
    torch.Size([2, 3, 8, 12])
    """
    if steps < 2:
        raise InputError(f"encoding takes at least 2 noise levels, not {steps}")
    denoise = bind_images(model, images, labels, coords)
    sigmas = Sampling(steps, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho).sigmas(model).to(wide(model.device))
    with evaluating(model), sharing(model), torch.no_grad():
        noisy = OF_EACH[model.process.name]["heun"](denoise, images.to(model.device, sigmas.dtype), sigmas[:-1].flip(0))
        noise = (noisy - model.centre(noisy)) / sigmas[0]
    check_finite(noise)
    return noise


def decode(
    model: Denoiser,
    noise: Tensor,
    *,
    labels: int | Iterable[int] | None = None,
    coords: Tensor | None = None,
    steps: int = 64,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float | None = None,
) -> Float[Tensor, "n c h w"]:
    """Return the images in model space that sampling makes of unit-variance noise (n, c, h, w).

    The other arguments are those of `encode`; the network is evaluated 2 * steps - 1 times.

    Raises:
        InputError: noise or settings do not suit the model.
        NotFiniteError: some images are not finite.

    >>> model = Denoiser(lambda x, c_noise, labels: x[:, :3])
    >>> decode(model, torch.zeros(2, 3, 8, 12), steps=4).abs().max()
    tensor(0., dtype=torch.float64)
    """
    denoise = bind_images(model, noise, labels, coords)
    sigmas = Sampling(steps, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho).sigmas(model).to(wide(model.device))
    with evaluating(model), sharing(model), torch.no_grad():
        start = noise.to(model.device, sigmas.dtype) * sigmas[0]
        images = OF_EACH[model.process.name]["heun"](denoise, start + model.centre(start), sigmas)
    check_finite(images)
    return images
