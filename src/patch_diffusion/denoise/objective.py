"""The training objective: maps a denoiser and a batch to losses. It does not know what a patch is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from patch_diffusion.config import Noise
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.process import PROCESSES, Process
from patch_diffusion.errors import InputError


class Batch(NamedTuple):
    """The inputs of an objective for n samples.

    ``clean`` images or patches (n, c, *shape) in model space, noise levels ``sigma`` (n,), ``noise`` of variance 1 like
    ``clean``, and the `Conditions` of each sample.
    """

    clean: Tensor
    sigma: Tensor
    noise: Tensor
    conditions: Conditions

    def select(self, rows: slice) -> Batch:
        """Return some of the samples."""
        return Batch(self.clean[rows], self.sigma[rows], self.noise[rows], self.conditions.select(rows))


class Denoises(Protocol):
    """A `Denoiser`, or anything that is called like one."""

    def __call__(
        self, noisy: Tensor, sigma: Tensor, coords: Tensor | Conditions, labels: Tensor | None = None
    ) -> Tensor:
        """Return the denoised images (n, c, *shape)."""
        ...

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Return lambda(sigma), the weight of the squared error."""
        ...


class Objective(nn.Module):
    """A training objective around a denoiser: a module, which torch compiles and distributes.

    A subclass implements ``forward``: batch to one loss per sample, (n,), each without regard to the others. It may own
    frozen modules; ``state`` and ``restore`` keep what the next step depends on in checkpoints.

    Args:
        denoiser: the model in training.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def set_spent(self, spent: float) -> None:
        """Take the fraction of the budget that is spent, before each step."""

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of its own that the next step depends on."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go back to the tensors of `state`."""


class DenoisingObjective(Objective):
    """The denoising loss, see `denoising_loss`."""

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of each sample, (n,)."""
        return denoising_loss(self.denoiser, batch.clean, batch.conditions, batch.sigma, noise=batch.noise)


def denoising_loss(
    denoiser: Denoises,
    clean: Tensor,
    coords: Tensor | Conditions,
    sigma: Tensor,
    labels: Tensor | None = None,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return lambda(sigma) (D(clean + sigma noise) - clean)^2, the mean over channels and pixels, per sample: ``(n,)``.

    The expectation of EDM, arXiv 2206.00364, equation 2, on the image channels only (Patch Diffusion, arXiv 2304.12526,
    equation 4).

    Args:
        denoiser: see `Denoiser`.
        clean: images or patches (n, c, *shape) in model space, [-1, 1] for pixels.
        coords: their coordinates, (axes, *shape) or (n, axes, *shape); or all conditions.
        sigma: noise levels (n,).
        labels: classes (n,), -1 where hidden; with coordinates only.
        noise: standard normal numbers like ``clean``; drawn where not given.
        generator: draws the noise; torch's default generator where none is given.

    Returns:
        ``(n,)``, differentiable.

    >>> denoiser = Denoiser(UNet(image_channels=3, width=8, multipliers=(1,), blocks=1))
    >>> patch = random_patches(torch.zeros(4, 3, 24, 32), size=8)
    >>> denoising_loss(denoiser, patch.pixels, patch.coords, sigma=NoiseLevels().draw(4)).shape
    torch.Size([4])
    """
    if noise is None:
        device = generator.device if generator is not None else clean.device
        noise = torch.randn(clean.shape, generator=generator, device=device).to(clean)
    sigma = sigma.to(clean)
    denoised = denoiser(clean + sigma.view(-1, *[1] * (clean.ndim - 1)) * noise, sigma, coords, labels)
    return denoiser.loss_weight(sigma) * (denoised - clean).square().mean(dim=tuple(range(1, clean.ndim)))


@dataclass(frozen=True)
class NoiseLevels(Noise):
    """The noise levels of training: as published for a process, or log-normal, ln(sigma) ~ N(p_mean, p_std^2).

    The options ``noise`` of a config, and what they do. The levels of the EDM process are log-normal themselves, with
    -1.2 and 1.2 (EDM, arXiv 2206.00364, table 1), which also stand in for the one of the two that is not given.

    Args:
        p_mean, p_std, process, weight, sigma_data, sigma_min, sigma_max: see `patch_diffusion.config.Noise`;
            ``process`` may also be a `Process`.

    >>> NoiseLevels().draw(8).shape
    torch.Size([8])
    """

    @classmethod
    def of(cls, options: Noise) -> NoiseLevels:
        """Return the noise levels by the options of a config."""
        names = [field.name for field in fields(Noise)]
        return options if isinstance(options, NoiseLevels) else cls(**{name: getattr(options, name) for name in names})

    def __post_init__(self) -> None:
        if isinstance(self.process, Process):
            object.__setattr__(self, "process", self.process.name)
        if self.p_std is not None and self.p_std < 0:
            raise InputError(f"noise.p_std is a standard deviation, so at least 0, not {self.p_std}")

    def draw(self, num: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw noise levels ``(num,)`` on the generator's device."""
        if self.p_mean is None and self.p_std is None:
            return PROCESSES[self.process].draw(num, generator)
        normal = torch.randn(num, generator=generator, device=None if generator is None else generator.device)
        p_mean, p_std = -1.2 if self.p_mean is None else self.p_mean, 1.2 if self.p_std is None else self.p_std
        return (normal * p_std + p_mean).exp()
