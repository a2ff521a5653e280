"""The training objective, which computes the losses of a batch; it treats images and patches alike."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated as Float, Annotated as Int, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from patch_diffusion.config import Noise
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.process import EDM, PROCESSES, Process
from patch_diffusion.errors import option_error


class Batch(NamedTuple):
    """A batch of n training samples, as an objective takes it.

    It has ``clean`` images or patches in model space, noise levels ``sigma``, ``noise`` of variance 1, and the
    `Conditions` of each sample.
    """

    clean: Float[Tensor, "n c *shape"]
    sigma: Float[Tensor, "n"]
    noise: Float[Tensor, "n c *shape"]
    conditions: Conditions

    def select(self, rows: slice) -> Batch:
        """Return the batch of some of the samples, given as a slice."""
        return Batch(self.clean[rows], self.sigma[rows], self.noise[rows], self.conditions.select(rows))


class Denoises(Protocol):
    """The interface of a `Denoiser` that computing a loss needs: a call that denoises, and a loss weight."""

    def __call__(
        self, noisy: Tensor, sigma: Tensor, coords: Tensor | Conditions, labels: Tensor | None = None
    ) -> Tensor:
        """Return the denoised images, see `Denoiser.forward`."""
        ...

    def loss_weight(self, sigma: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Return lambda(sigma), the weight of the squared error."""
        ...


class Objective(nn.Module):
    """A training objective around a denoiser: a torch module, which can be compiled and distributed.

    A subclass implements ``forward``, which maps a batch to one loss per sample, independent of others. It may
    own frozen modules; tensors that its next step depends on are saved in checkpoints by ``state`` and ``restore``.

    Args:
        denoiser: the model in training.

    Attributes:
        passes: the cost of a training step on an image, in forward passes; a backward pass counts as two.
        denoises: False if the model is not to end as a denoiser, so that its denoising loss says nothing.
    """

    passes: ClassVar[int] = 3
    denoises: ClassVar[bool] = True

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def set_spent(self, spent: float) -> None:
        """Receive the fraction of the training budget that is spent, before each step; the default ignores it."""

    def state(self) -> dict[str, Tensor]:
        """Return the tensors, by name, that checkpoints must save besides the model; by default none."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore the tensors that `state` returned, from a checkpoint; the default does nothing."""


class DenoisingObjective(Objective):
    """The default training objective: the denoising loss, see `denoising_loss`."""

    def forward(self, batch: Batch) -> Float[Tensor, "{len(batch.clean)}"]:
        """Return the loss of each sample."""
        return denoising_loss(self.denoiser, batch.clean, batch.conditions, batch.sigma, noise=batch.noise)


def denoising_loss(
    denoiser: Denoises,
    clean: Float[Tensor, "n c *shape"],
    coords: Float[Tensor, "..."] | Conditions,
    sigma: Float[Tensor, "n"],
    labels: Int[Tensor, "n"] | None = None,
    *,
    noise: Float[Tensor, "n c *shape"] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n"]:
    """Return lambda(sigma) (D(clean + sigma noise) - clean)^2, the mean over channels and pixels, per sample.

    Its expectation is EDM's loss (arXiv 2206.00364, equation 2), on the image channels only (Patch Diffusion, arXiv
    2304.12526, equation 4).

    Args:
        denoiser: the model, see `Denoiser`.
        clean: images or patches in model space, [-1, 1] for pixels.
        coords: their coordinates, (axes, *shape) or (n, axes, *shape); or all `Conditions`.
        sigma: noise levels.
        labels: classes, -1 for "no class"; only used if ``coords`` are coordinates.
        noise: standard normal numbers; None draws them.
        generator: the random generator of the noise; None uses torch's default generator.

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
    # Not mse_loss, whose gradient may have another memory layout than compiled networks were promised.
    return denoiser.loss_weight(sigma) * (denoised - clean).square().mean(dim=tuple(range(1, clean.ndim)))


@dataclass(frozen=True)
class NoiseLevels(Noise):
    """The distribution of noise levels in training: as published for a process, or ln(sigma) ~ N(p_mean, p_std^2).

    It holds the options ``noise`` of a config and draws by them. The EDM process has ln(sigma) ~ N(-1.2, 1.2^2) (EDM,
    arXiv 2206.00364, table 1); these are also the values of ``p_mean`` and ``p_std`` if only the other one is given, 0
    and 1 for flow. A `Trainer` of the EDM process with the learned weight, the default, takes 0 and 1.6 in their place.

    Args:
        p_mean, p_std, process, weight, sigma_data, sigma_min, sigma_max, mean_data, levels: see `Noise` in config.py;
            ``process`` may also be a `Process`.

    >>> NoiseLevels().draw(8).shape
    torch.Size([8])
    """

    @classmethod
    def of(cls, options: Noise) -> NoiseLevels:
        """Make the distribution from the options ``noise`` of a config; a `NoiseLevels` is returned unchanged."""
        names = [field.name for field in fields(Noise)]
        return options if isinstance(options, NoiseLevels) else cls(**{name: getattr(options, name) for name in names})

    def __post_init__(self) -> None:
        if isinstance(self.process, Process):
            object.__setattr__(self, "process", self.process.name)
        if self.p_std is not None and self.p_std < 0:
            raise option_error("noise.p_std", f"is a standard deviation, so at least 0, not {self.p_std}")

    def draw(self, num: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "{num}"]:
        """Draw random noise levels on the generator's device."""
        if self.p_mean is None and self.p_std is None:
            return PROCESSES[self.process].draw(num, generator)
        normal = torch.randn(num, generator=generator, device=None if generator is None else generator.device)
        process = PROCESSES[self.process]
        p_mean = process.p_mean if self.p_mean is None else self.p_mean
        return (normal * (process.p_std if self.p_std is None else self.p_std) + p_mean).exp()


def settled_noise(options: Noise) -> Noise:
    """Return the noise options of a new run with the noise levels of training, if they are not given, as numbers.

    With the learned weight, a wider distribution about a higher mean learns more (LOG.md, "Recipes at equal
    operations").

    >>> settled_noise(Noise(process="edm", weight="learned")).p_std
    1.6
    """
    process = PROCESSES[options.process]
    if not isinstance(process, EDM):
        return options
    learned = (options.process, options.weight) == ("edm", "learned")
    p_mean, p_std = (0.0, 1.6) if learned else (process.p_mean, process.p_std)
    return replace(
        options,
        p_mean=p_mean if options.p_mean is None else options.p_mean,
        p_std=p_std if options.p_std is None else options.p_std,
    )
