"""The denoising loss. It does not know what a patch is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from patch_diffusion.denoise.denoiser import Denoiser
from dataclasses import dataclass, field

from patch_diffusion.denoise.process import EDM, Process
from patch_diffusion.denoise.threads import evaluate
from patch_diffusion.errors import InputError


def denoising_loss(
    denoiser: Denoiser,
    clean: Tensor,
    coords: Tensor,
    sigma: Tensor,
    labels: Tensor | None = None,
    *,
    augment: Tensor | None = None,
    context: Tensor | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """lambda(sigma) (D(clean + sigma noise) - clean)^2, the mean over channels and pixels of each sample: ``(n,)``.

    The expectation of EDM, arXiv 2206.00364, equation 2, on the image channels only (Patch Diffusion, arXiv 2304.12526,
    equation 4).

    Args:
        denoiser: see `Denoiser`.
        clean: images or patches (n, c, h, w) in model space, [-1, 1] for pixels.
        coords: their coordinates, (2, h, w) or (n, 2, h, w).
        sigma: noise levels (n,).
        labels: classes (n,), -1 where hidden.
        augment: how the images were augmented (n, augment_channels), for a network that is told; None is "not".
        context: small copies of the whole images (n, c, h', w'), for a denoiser with a context; None is "none".
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
    conditions = (labels, augment) if context is None else (labels, augment, context)
    denoised = evaluate(denoiser, clean + sigma[:, None, None, None] * noise, sigma, coords, *conditions)
    return denoiser.loss_weight(sigma) * (denoised - clean).square().mean(dim=(1, 2, 3))


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
