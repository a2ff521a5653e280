"""The running losses of training, per patch size and per noise level, and the loss weight learned from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from patch_diffusion.denoise.whole_image import SIGMAS
from patch_diffusion.records import Strict, record_of


@dataclass(frozen=True)
class Summary:
    """Mean losses of the steps since the last line of the log, by patch size and noise level, and the number of steps.

    Only finite losses count. ``skipped`` counts the steps since the training began whose gradients were not finite, so
    that they changed no weights.
    """

    by_size: Mapping[str, float]
    by_noise: Mapping[str, float]
    num_steps: int
    skipped: int


@dataclass(frozen=True)
class KeptLosses(Strict):
    """A record of the losses that a checkpoint keeps for the next line of the log; None for those that are not finite.

    ``steps`` are a patch size and the mean loss of each step, ``noise`` sums and counts by noise level.
    """

    steps: list[tuple[str, float | None]]
    noise: list[list[float | None]]
    skipped: int


class Losses:
    """A store of losses that stay on the device until a log line is due, so that a step never waits for the host.

    Args:
        device: the device of the losses.
        levels: rising noise levels, to the nearest of which a loss belongs.
    """

    def __init__(self, device: torch.device, levels: Sequence[float] = SIGMAS) -> None:
        self._steps: list[tuple[str, Tensor]] = []
        self._levels = tuple(levels)
        self._noise = torch.zeros(2, len(levels), device=device)
        self._skipped = torch.zeros((), device=device)
        self._edges = torch.tensor([math.sqrt(low * high) for low, high in pairwise(levels)], device=device)

    def zeros(self) -> Tensor:
        """Return the sums and counts of losses by noise level for no samples: zeros ``(2, levels)``."""
        return torch.zeros_like(self._noise)

    def levels(self, sigma: Tensor) -> Tensor:
        """Return, for each of n noise levels, the index of the nearest of the levels: ``(n,)``."""
        return torch.bucketize(sigma, self._edges)

    def binned(self, losses: Tensor, sigma: Tensor) -> Tensor:
        """Return sums and counts of losses ``(n,)`` by the nearest of the levels: ``(2, levels)``."""
        return self.zeros().index_add_(1, self.levels(sigma), torch.stack([losses, torch.ones_like(losses)]))

    def add(self, size: str, loss: Tensor, by_noise: Tensor, skipped: Tensor) -> None:
        """Record a step: patch size, mean loss, losses by noise level (from `binned`), and 1 if skipped, else 0."""
        self._steps.append((size, loss))
        self._noise += by_noise
        self._skipped += skipped

    def summary(self) -> Summary:
        """Return the mean losses for the next line of the log; this waits for the device."""
        values, (sums, counts), skipped = self._values()
        finite: dict[str, list[float]] = {}
        for size, value in values:
            if math.isfinite(value):
                finite.setdefault(size, []).append(value)
        by_noise = {
            f"{sigma:g}": total / count
            for sigma, total, count in zip(self._levels, sums, counts, strict=True)
            if count and math.isfinite(total)
        }
        return Summary(
            {size: math.fsum(found) / len(found) for size, found in sorted(finite.items())},
            by_noise,
            len(values),
            skipped,
        )

    def clear(self) -> None:
        """Drop the losses that the line of the log just written has reported."""
        self._steps.clear()
        self._noise.zero_()

    def state(self) -> dict[str, Any]:
        """Return all losses as a dict that JSON can store, so that a continued run writes the same line of the log."""
        values, noise, skipped = self._values()
        steps = [(size, _stored(value)) for size, value in values]
        return {"steps": steps, "noise": [[_stored(value) for value in row] for row in noise], "skipped": skipped}

    def restore(self, state: Mapping[str, Any], where: str = "a checkpoint") -> None:
        """Replace the recorded losses by those in a dict that `state` returned, from the file ``where``."""
        kept = record_of(KeptLosses, state, where, "losses")
        self._steps = [(size, torch.tensor(_restored(value), dtype=torch.float64)) for size, value in kept.steps]
        self._noise.copy_(torch.tensor([[_restored(value) for value in row] for row in kept.noise]))
        self._skipped.fill_(kept.skipped)

    def _values(self) -> tuple[list[tuple[str, float]], list[list[float]], int]:
        # One transfer for all steps, in the device's own type, as not every device has float64. Those of a restored
        # checkpoint are on the host already.
        on_device = [loss for _, loss in self._steps if loss.dtype != torch.float64]
        fresh = iter(torch.stack(on_device).tolist() if on_device else [])
        values = [(size, loss.item() if loss.dtype == torch.float64 else next(fresh)) for size, loss in self._steps]
        return values, self._noise.tolist(), int(self._skipped.item())


def _stored(value: float) -> float | None:
    """Return a loss as JSON can store it: those that are not finite count alike, and are None."""
    return value if math.isfinite(value) else None


def _restored(value: float | None) -> float:
    return math.nan if value is None else value


_KEPT = 0.98  # share of the running sums that stays when a step adds its losses


class Balance:
    """Loss weights that make every noise level count alike, at every patch size: one over the recent mean loss.

    Noise levels at which the loss is small would otherwise teach little. One over the loss is the optimum of
    EDM2's learned weighting, loss / exp(u) + u (arXiv 2312.02696, section 2.1, after Kendall et al., arXiv 1705.07115),
    here from running means at some levels in place of a network. All of it stays on the device.

    Args:
        losses: assigns noise levels to the levels of the run.
    """

    def __init__(self, losses: Losses) -> None:
        self._losses = losses
        self._known: dict[str, Tensor] = {}

    def weights(self, size: str, sigma: Tensor) -> Tensor:
        """Return the weights of losses at the noise levels ``sigma`` (n,), on patches of a size by its name."""
        sums, counts = self._of(size)
        return (counts / sums)[self._losses.levels(sigma)]

    def update(self, size: str, by_noise: Tensor) -> None:
        """Update the running means by a step's losses, summed by `Losses.binned` over all ranks."""
        known = self._of(size)
        news = (by_noise[1] > 0) & (by_noise[0].abs() < math.inf)
        self._known[size] = torch.where(news, _KEPT * known + by_noise, known)

    def state(self) -> dict[str, Any]:
        """Return the running means as a dict that JSON can store."""
        return {size: known.tolist() for size, known in self._known.items()}

    def restore(self, state: Mapping[str, list[list[float]]]) -> None:
        """Replace the running means by those in a dict that `state` returned."""
        like = self._losses.zeros()
        self._known = {size: like + torch.tensor(known, device=like.device) for size, known in state.items()}

    def _of(self, size: str) -> Tensor:
        """Return sums and counts for a patch size: at first one loss of 1, that of a network that learned nothing."""
        if size not in self._known:
            self._known[size] = torch.ones_like(self._losses.zeros())
        return self._known[size]
