"""Consistency tuning: the objective that turns a denoiser into a model that samples in a few steps.

A consistency function f(x; t) maps an image with noise of level t to the image at the end of its path along the
probability-flow ODE, so f is the same all along a path, and f(x; 0) = x. Here f is the denoiser D itself, which is x
at t = 0 by its preconditioning. Easy consistency tuning (ECT, "Consistency Models Made Easy", arXiv 2406.14548)
compares f at two levels r < t of one image with one noise, and lets r approach t while it trains. At first r is 0,
where the target is the clean image: that is denoising, so a tuning begins where a diffusion model has ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated as Float, Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.objective import Batch, Objective

CLOSEST = 1 / 256
"""The factor q^-a of the distance between the two levels at the end of the budget: eight halvings."""

_MORE, _SHARPNESS = 8.0, 1.0  # k and b of n(t) = 1 + k sigmoid(-b t): low levels keep their r = 0 for longer
_USUAL = 0.5  # standard deviation of the images that the paper's numbers are for
_HUBER = 0.03  # c of the pseudo-Huber distance of a root mean square; the published 0.00054 did worse on digits

P_MEAN, P_STD = -1.1, 2.0
"""Mean and standard deviation of ln(t) in training, for images of deviation 0.5, as for CIFAR-10."""


class ConsistencyObjective(Objective):
    """The loss w(t) d(f(x + t n; t), f(x + r n; r)), with no gradient through the second f.

    The distance d is pseudo-Huber's, sqrt(mean square + c^2) - c, and w(t) = sqrt(1 / t^2 + 1 / sigma_data^2), which
    makes all levels count about equally while r is 0. The second f has the same weights and the same dropout as the
    first; an averaged copy was found to be worse (iCT, arXiv 2310.14189). So there is nothing to save in a checkpoint,
    and the distance of the levels follows from the spent fraction of the budget alone.

    Args:
        denoiser: the model in training.
    """

    passes: ClassVar[int] = 4
    denoises: ClassVar[bool] = False
    nearness: Tensor

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser)
        # A tensor, as a compiled objective would be compiled anew for every number.
        self.register_buffer("nearness", torch.ones(()), persistent=False)
        self._draws: bool = not hasattr(denoiser.network, "settings") or any(
            isinstance(module, nn.Dropout) and module.p > 0 for module in denoiser.modules()
        )

    @override
    def set_spent(self, spent: float) -> None:
        """Set how close the two levels are: the factor of their distance falls from 1 to `CLOSEST` geometrically."""
        self.nearness.fill_(CLOSEST ** min(max(spent, 0.0), 1.0))

    def lower(self, sigma: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Return r for each noise level t: r / t = 1 - n(t) / q^a, or 0 where that is below."""
        more = 1 + _MORE * torch.sigmoid(-_SHARPNESS * sigma * (_USUAL / self.denoiser.sigma_data))
        return sigma * (1 - more * self.nearness).clamp(min=0.0)

    def forward(self, batch: Batch) -> Float[Tensor, "{len(batch.clean)}"]:
        """Return the loss of each sample."""
        clean, noise, upper = batch.clean, batch.noise, batch.sigma.to(batch.clean)
        along, pixels = (-1, *[1] * (clean.ndim - 1)), tuple(range(1, clean.ndim))
        lower = self.lower(upper)
        with torch.no_grad(), _drawn_again(clean.device) if self._draws else _nothing():
            levels = torch.where(lower > 0, lower, upper)  # as ln(0) is no input of a network
            target = self.denoiser(clean + lower.view(along) * noise, levels, batch.conditions)
            target = torch.where(lower.view(along) > 0, target, clean)
        found = self.denoiser(clean + upper.view(along) * noise, upper, batch.conditions)
        sigma_data = self.denoiser.sigma_data
        c = _HUBER * sigma_data / _USUAL
        distance = ((found - target).square().mean(dim=pixels) + c**2).sqrt() - c
        return (1 / upper.square() + 1 / sigma_data**2).sqrt() * distance


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _drawn_again(device: torch.device) -> Iterator[None]:
    """Set the random numbers of torch on a device back after the with block, so that the next ones are the same."""
    source: Any = {"cuda": torch.cuda, "mps": torch.mps}.get(device.type, torch)
    where = (device,) if device.type == "cuda" else ()
    before = source.get_rng_state(*where)
    try:
        yield
    finally:
        source.set_rng_state(before, *where)
