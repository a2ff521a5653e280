"""Types of the functions that solvers take, and of the step that solvers report to a callback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated as Float

from torch import Tensor

if TYPE_CHECKING:
    from patch_diffusion.denoise.conditions import Conditions

Denoise = Callable[[Tensor, Tensor], Tensor]
"""A function ``denoise(noisy, sigma)`` from images (n, c, h, w) and one noise level to denoised images."""

Images = Float[Tensor, "n *shape"]
"""Noisy or denoised images, such as (n, c, h, w)."""

Level = Float[Tensor, ""]
"""A noise level."""

Sigmas = Float[Tensor, "levels"]
"""The noise levels of a solver, one more than its steps."""

ConditionalDenoise = Callable[[Tensor, Tensor, "Conditions"], Tensor]
"""A function ``model(noisy, sigma, conditions)``: a denoiser, or one whose batches are shared by threads."""

StepNoise = Callable[[int], Tensor]
"""A function ``noise(index)`` to standard normal numbers like the images, always the same for the same step."""


@dataclass(frozen=True)
class Step:
    """A step of a solver: the images ``noisy`` at noise level ``sigma``, and ``denoised``."""

    index: int
    sigma: Float[Tensor, ""]
    noisy: Images
    denoised: Images


Callback = Callable[[Step], object]
"""A function that a solver calls with every step, in order, each once."""
