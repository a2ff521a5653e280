"""A diffusers ``UNet2DModel`` that was trained at the timesteps of a scheduler, as a network for the EDM process."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated as Float, Annotated as Int, Any

import torch
from torch import Tensor, nn

# Rounding of noise levels moves a timestep by up to 1e-4; a network knows whole ones best.
_WHOLE = 1e-3


class TimestepUNet(nn.Module):
    """A network of the EDM process around a ``UNet2DModel`` that predicts noise, v or images at timesteps.

    The model U sees x_t = x / sqrt(1 + sigma^2) at the timestep t of the schedule whose noise level is sigma. That is a
    real number, interpolated in ln(sigma) between whole timesteps. With U the clean image is (DDPM, arXiv 2006.11239;
    v: arXiv 2202.00512):

    | prediction | D(x; sigma) |
    |---|---|
    | epsilon | x - sigma U |
    | v_prediction | x / (1 + sigma^2) - sigma / sqrt(1 + sigma^2) U |
    | sample | U |

    The output is the F for which the preconditioning of EDM gives that D, so that nothing else needs to know of it.

    Args:
        image_channels: channels of the images, in and out.
        unet: ``model``, the arguments of the ``UNet2DModel`` without channels, classes and dropout; ``schedule``, see
            `noise_levels`; ``prediction``, "epsilon", "v_prediction" or "sample"; ``sigma_data``, which must be that of
            the denoiser.
        dropout: probability of dropout in the residual blocks.
        num_classes, label_dropout, coords, context: as for `UNet`. Classes have one embedding more, for "no class".
    """

    log_sigmas: Tensor

    def __init__(
        self,
        image_channels: int,
        unet: Mapping[str, Any],
        dropout: float = 0.0,
        *,
        num_classes: int = 0,
        label_dropout: float = 0.1,
        coords: bool = True,
        context: bool = False,
    ) -> None:
        super().__init__()
        from diffusers.models.unets.unet_2d import UNet2DModel

        for name, share in (("dropout", dropout), ("label_dropout", label_dropout)):
            if not 0 <= share < 1:
                raise ValueError(f"network.{name} is a probability in [0, 1), not {share}")
        self.unet: Any = UNet2DModel(
            **unet["model"],
            in_channels=image_channels + 2 * coords + (image_channels + 1) * context,
            out_channels=image_channels,
            num_class_embeds=num_classes + 1 if num_classes else None,
            dropout=dropout,
        )
        self.image_channels = image_channels
        self.num_classes = num_classes
        self.label_dropout: float = label_dropout if num_classes else 0.0
        self.context = context
        self.stride: int = 2 ** (len(self.unet.config.block_out_channels) - 1)
        self.prediction: str = unet["prediction"]
        self.sigma_data: float = unet["sigma_data"]
        self.settings: dict[str, Any] = {  # the options of config.Network that rebuild this network
            "kind": "diffusers",
            "unet": dict(unet),
            "dropout": dropout,
            "label_dropout": label_dropout,
        }
        logs = [math.log(sigma) for sigma in noise_levels(**unet["schedule"])]
        self.register_buffer("log_sigmas", torch.tensor(logs, dtype=torch.float32), persistent=False)

    def forward(
        self,
        x: Float[Tensor, "n channels height width"],
        c_noise: Float[Tensor, "n"],
        labels: Int[Tensor, "n"] | None = None,
    ) -> Float[Tensor, "n image_channels height width"]:
        """Run the network on noisy images, scaled as by the EDM process; return F. It is called as `UNet` is."""
        if self.num_classes:
            labels = torch.full_like(c_noise, -1, dtype=torch.long) if labels is None else labels
            labels = labels.where(labels >= 0, self.num_classes)
        sigma = (4 * c_noise).exp()[:, None, None, None]
        total, deviation = (sigma.square() + self.sigma_data**2).sqrt(), (sigma.square() + 1).sqrt()
        noisy, beside = x[:, : self.image_channels], x[:, self.image_channels :]
        told = torch.cat([noisy * (total / deviation), beside], dim=1)
        found = self.unet(told, timestep=self.timestep(4 * c_noise), class_labels=labels).sample
        if self.prediction == "epsilon":
            return (noisy * sigma - found * total) / self.sigma_data
        if self.prediction == "v_prediction":
            kept = sigma * (1 - self.sigma_data**2) / deviation.square()
            return (noisy * kept - found * (total / deviation)) / self.sigma_data
        return found * (total / (sigma * self.sigma_data)) - noisy * (self.sigma_data / sigma)

    def timestep(self, log_sigma: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Return the timesteps of noise levels, interpolated in ln(sigma); beyond the schedule, the first or last."""
        logs = self.log_sigmas.to(log_sigma)
        below = (log_sigma[:, None] >= logs).sum(dim=1).sub(1).clamp(0, len(logs) - 2)
        low, high = logs[below], logs[below + 1]
        time = below + ((log_sigma - low) / (high - low)).clamp(0, 1)
        return torch.where((time - time.round()).abs() < _WHOLE, time.round(), time)

    @property
    def recompute(self) -> bool:
        """True if the model computes its blocks again in the backward pass, to save memory."""
        return self.unet.is_gradient_checkpointing

    @recompute.setter
    def recompute(self, value: bool) -> None:
        if value != self.recompute:
            self.unet.enable_gradient_checkpointing() if value else self.unet.disable_gradient_checkpointing()


def noise_levels(
    *,
    num_train_timesteps: int = 1000,
    beta_schedule: str = "linear",
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    trained_betas: Sequence[float] | None = None,
    rescale_betas_zero_snr: bool = False,
) -> list[float]:
    """Return the noise level sqrt(1 / a - 1) of each timestep of a diffusers scheduler, rising; a is alphas_cumprod.

    Args:
        num_train_timesteps, beta_start, beta_end, trained_betas: as in the scheduler's configuration.
        beta_schedule: "linear", "scaled_linear" or "squaredcos_cap_v2".
        rescale_betas_zero_snr: true if the last timestep is noise alone (arXiv 2305.08891, algorithm 1). It gets twice
            the noise level of the one before.

    Raises:
        ValueError: the schedule is another one, or its noise levels do not rise.

    >>> levels = noise_levels(beta_schedule="linear")
    >>> len(levels), round(levels[0], 4), round(levels[-1])
    (1000, 0.01, 157)
    """
    num = num_train_timesteps
    if trained_betas is not None:
        betas = torch.tensor(trained_betas, dtype=torch.float32)
    elif beta_schedule == "linear":
        betas = torch.linspace(beta_start, beta_end, num, dtype=torch.float32)
    elif beta_schedule == "scaled_linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, num, dtype=torch.float32).square()
    elif beta_schedule == "squaredcos_cap_v2":  # the cosine of improved DDPM (arXiv 2102.09672, equation 17)
        left = [math.cos((step / num + 0.008) / 1.008 * math.pi / 2) ** 2 for step in range(num + 1)]
        betas = torch.tensor([min(1 - after / before, 0.999) for before, after in pairwise(left)])
    else:
        raise ValueError(f"beta_schedule {beta_schedule} is none of linear, scaled_linear and squaredcos_cap_v2")
    signal = (1 - betas).cumprod(0)
    if rescale_betas_zero_snr:
        root = signal.sqrt()
        signal = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))).square()
        signal = torch.cat([signal[:1], signal[1:] / signal[:-1]]).sub(1).add(1).cumprod(0)  # rounded as in diffusers
    found = (1 / signal.double() - 1).sqrt()
    if rescale_betas_zero_snr:
        found[-1] = 2 * found[-2]  # in place of no end, so that there is something to interpolate to
    if not (found.numel() > 1 and found.isfinite().all() and found[0] > 0 and (found.diff() > 0).all()):
        raise ValueError("the noise levels of the schedule do not rise")
    return found.tolist()
