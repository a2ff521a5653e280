"""What a loss weighs by its noise level, learned in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from patch_diffusion.training.losses import Losses

_KEPT = 0.98  # of what is known, at each step that tells something new


class Balance:
    """Every noise level counts alike, at every patch size: losses are divided by what they have been of late.

    Where much can be denoised the loss is small, and would otherwise teach little. The division is what the optimum of
    EDM2's learned weighting, loss / exp(u) + u, comes to (arXiv 2312.02696, section 2.1, after Kendall et al., arXiv
    1705.07115), with running means at eight levels in place of a network. All of it stays on the device.

    Args:
        losses: knows the levels.
    """

    def __init__(self, losses: Losses) -> None:
        self._losses = losses
        self._known: dict[str, Tensor] = {}

    def weights(self, size: str, sigma: Tensor) -> Tensor:
        """``(n,)``, of losses at the noise levels ``sigma``, on patches of a size by its name."""
        sums, counts = self._of(size)
        return (counts / sums)[self._losses.levels(sigma)]

    def update(self, size: str, by_noise: Tensor) -> None:
        """Learn from a step's losses, as `Losses.by_noise` tells them, of all processes."""
        known = self._of(size)
        news = (by_noise[1] > 0) & by_noise.isfinite().all(dim=0)
        self._known[size] = torch.where(news, _KEPT * known + by_noise, known)

    def state(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {size: known.tolist() for size, known in self._known.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Undo `state`."""
        device = self._losses.none().device
        self._known = {size: torch.tensor(known, device=device) for size, known in state.items()}

    def _of(self, size: str) -> Tensor:
        """Sums and counts: at first one loss of 1, which is that of a network that has learned nothing."""
        return self._known.get(size, torch.ones_like(self._losses.none()))
