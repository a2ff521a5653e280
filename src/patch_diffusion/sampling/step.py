"""Types of the functions that solvers take, and the step that they report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from patch_diffusion.denoise.conditions import Conditions

Denoise = Callable[[Tensor, Tensor], Tensor]
"""``denoise(noisy, sigma)``: images (n, c, h, w) and one noise level to denoised images."""

ConditionalDenoise = Callable[[Tensor, Tensor, "Conditions"], Tensor]
"""``model(noisy, sigma, conditions)``: a denoiser, or one whose batches are shared by threads."""

StepNoise = Callable[[int], Tensor]
"""``noise(index)``: standard normal numbers like the images, always the same for the same step."""


@dataclass(frozen=True)
class Step:
    """A step of a solver: ``denoised`` (n, c, h, w) is what it made of ``noisy`` (n, c, h, w) at level ``sigma``."""

    index: int
    sigma: Tensor
    noisy: Tensor
    denoised: Tensor


Callback = Callable[[Step], object]
"""A function that is called with every step, in order, each once."""
