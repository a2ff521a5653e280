"""What a solver is given, and what it reports of each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""``denoise(noisy, sigma)``: images (n, c, h, w) and one noise level to denoised images."""

StepNoise = Callable[[int], Tensor]
"""``noise(index)``: standard normal numbers like the images, always the same for the same step."""


@dataclass(frozen=True)
class Step:
    """One step of a solver: ``denoised`` (n, c, h, w) is what it made of ``noisy`` (n, c, h, w) at level ``sigma``."""

    index: int
    sigma: Tensor
    noisy: Tensor
    denoised: Tensor


Callback = Callable[[Step], object]
"""Called with every step, in order, each once."""
