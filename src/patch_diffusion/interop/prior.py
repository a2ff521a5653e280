"""Models as the priors of libraries for inverse problems, such as deepinv, which need not be installed."""

from __future__ import annotations

from typing import Annotated as Float, Any

import torch
from torch import Tensor, nn

from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.denoiser import Denoiser, evaluating
from patch_diffusion.errors import InputError
from patch_diffusion.patches.coords import coordinate_grid
from patch_diffusion.sampling.bind import check_one_stage
from patch_diffusion.sampling.generate import jobs_of


class Prior(nn.Module):
    """A denoiser ``prior(x, sigma)`` of images whose black and white are 0 and 1, the interface of deepinv's Denoiser.

    It can be differentiated, and is not clipped to [0, 1], so that it is the posterior mean. Levels beyond those of the
    model are taken as its lowest or highest. `as_prior` makes it.
    """

    def __init__(self, model: Denoiser, label: int | None = None) -> None:
        super().__init__()
        check_one_stage(model)
        if not isinstance(model.codec, PixelCodec):
            raise InputError("this model makes latents, and a prior is of pixels")
        self.model = model
        self.label: int | None = next(iter(jobs_of(model, [0], label)))[1] if label is not None else None
        if self.label is None and model.num_classes and not model.label_dropout:
            raise InputError("this model has learned images of a class only: give a label")

    def forward(
        self, x: Float[Tensor, "n c h w"], sigma: Float[Tensor, "..."] | float, **_: Any
    ) -> Float[Tensor, "n c h w"]:
        """Return denoised images; ``sigma``, one number or one for each image, is on the scale of the pixels."""
        levels = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).flatten().expand(len(x))
        levels = (2 * levels).clamp(self.model.sigma_min, self.model.sigma_max)
        labels = None if self.label is None else torch.full((len(x),), self.label, device=x.device)
        grid = coordinate_grid(*x.shape[2:], device=x.device)
        with evaluating(self.model):
            return (self.model(2 * x - 1, levels, Conditions(grid, labels)) + 1) / 2


def as_prior(model: Denoiser, *, label: int | None = None) -> Prior:
    """Return a model as a prior for the physics of deepinv and of libraries alike: a torch module ``prior(x, sigma)``.

    Args:
        model: from `load`, or any `Denoiser` of pixels.
        label: the class of the images; None: no class.

    Raises:
        InputError: the model makes latents or images in two stages, or knows images of a class only.

    >>> prior = as_prior(load("runs/digits"))
    >>> prior(torch.rand(2, 1, 16, 16), 0.1).shape
    torch.Size([2, 1, 16, 16])
    """
    return Prior(model, label)
