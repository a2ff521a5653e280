"""Noise levels of training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from patch_diffusion.config import Noise
from patch_diffusion.errors import InputError


@dataclass(frozen=True)
class NoiseLevels:
    """Log-normal noise levels: ln(sigma) ~ N(p_mean, p_std^2) (EDM, arXiv 2206.00364, table 1).

    >>> NoiseLevels().draw(8).shape
    torch.Size([8])
    """

    p_mean: float = Noise.p_mean
    p_std: float = Noise.p_std

    def __post_init__(self) -> None:
        if self.p_std < 0:
            raise InputError(f"noise.p_std is a standard deviation, so at least 0, not {self.p_std}")

    def draw(self, num: int, *, generator: torch.Generator | None = None) -> Tensor:
        """``(num,)`` noise levels on the generator's device."""
        device = generator.device if generator is not None else None
        return self.from_normal(torch.randn(num, generator=generator, device=device))

    def from_normal(self, normal: Tensor) -> Tensor:
        """Noise levels from standard normal numbers of any shape."""
        return (normal * self.p_std + self.p_mean).exp()
