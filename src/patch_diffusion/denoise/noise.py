"""Noise levels of training."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from patch_diffusion.denoise.process import EDM, Process
from patch_diffusion.errors import InputError


@dataclass(frozen=True)
class NoiseLevels:
    """Noise levels as published for a process, or log-normal ones: ln(sigma) ~ N(p_mean, p_std^2).

    Those of the EDM process are log-normal themselves, of -1.2 and 1.2 (EDM, arXiv 2206.00364, table 1), which are also
    what the other of the two is where only one is given.

    >>> NoiseLevels().draw(8).shape
    torch.Size([8])
    """

    p_mean: float | None = None
    p_std: float | None = None
    process: Process = field(default_factory=EDM)

    def __post_init__(self) -> None:
        if self.p_std is not None and self.p_std < 0:
            raise InputError(f"noise.p_std is a standard deviation, so at least 0, not {self.p_std}")

    def draw(self, num: int, *, generator: torch.Generator | None = None) -> Tensor:
        """``(num,)`` noise levels on the generator's device."""
        if self.p_mean is None and self.p_std is None:
            return self.process.draw(num, generator)
        normal = torch.randn(num, generator=generator, device=None if generator is None else generator.device)
        p_mean, p_std = -1.2 if self.p_mean is None else self.p_mean, 1.2 if self.p_std is None else self.p_std
        return (normal * p_std + p_mean).exp()
