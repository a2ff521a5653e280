"""The exponential moving average of the weights, which samples are made with."""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from patch_diffusion.config import Ema
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import option_error


class WeightAverage:
    """An exponential moving average of a model's weights with a half-life in images, so the batch does not matter.

    While few images have been seen, the half-life is at most ``ramp`` times their number (EDM, arXiv 2206.00364,
    appendix F.2). ``denoiser`` is the averaged model, in evaluation mode.
    """

    def __init__(self, denoiser: Denoiser, options: Ema) -> None:
        for name, value in (("half_life_images", options.half_life_images), ("ramp", options.ramp)):
            if not value > 0:
                raise option_error(f"ema.{name}", f"is above 0, not {value}")
        self.options = options
        self.denoiser: Denoiser = copy.deepcopy(denoiser).eval().requires_grad_(False)
        self._followed: tuple[Denoiser, _Tensors, _Tensors] | None = None

    @torch.no_grad()
    def update(self, denoiser: Denoiser, num_images: int, images_seen: int) -> None:
        """Update the average with ``denoiser``'s weights after a step on ``num_images``, ``images_seen`` in all."""
        half_life = min(self.options.half_life_images, self.options.ramp * images_seen)
        if self._followed is None or self._followed[0] is not denoiser:  # listing tensors takes as long as the rest
            self._followed = denoiser, _Tensors.of(denoiser), _Tensors.of(self.denoiser)
        _, current, averages = self._followed
        decay = 0.5 ** (num_images / half_life)
        torch._foreach_lerp_(averages.weights, current.weights, 1 - decay)
        if averages.buffers:
            torch._foreach_copy_(averages.buffers, current.buffers)


class _Tensors(NamedTuple):
    weights: list[Tensor]
    buffers: list[Tensor]

    @classmethod
    def of(cls, denoiser: Denoiser) -> _Tensors:
        return cls(list(denoiser.parameters()), list(denoiser.buffers()))
