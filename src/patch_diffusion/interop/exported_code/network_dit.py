"""The transformer of this package as a diffusers model."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from patch_diffusion.denoise.networks.dit import DiT


class PatchDiffusionDiT(ModelMixin, ConfigMixin):
    """The network `DiT` with the interface of diffusers' own networks; its arguments are those of `DiT`."""

    @register_to_config
    def __init__(
        self,
        image_channels: int = 3,
        width: int = 128,
        depth: int = 6,
        heads: int = 4,
        token: int = 2,
        dropout: float = 0.1,
        kind: str = "dit",
        num_classes: int = 0,
        label_dropout: float = 0.1,
        augment_channels: int = 0,
        coords: bool = True,
    ) -> None:
        super().__init__()
        self.network = DiT(
            image_channels,
            width,
            depth,
            heads,
            token,
            dropout,
            num_classes=num_classes,
            label_dropout=label_dropout,
            augment_channels=augment_channels,
            coords=coords,
        )

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> Any:
        """Compute the raw output F (n, image_channels, h, w).

        Args:
            sample: scaled noisy images with their coordinates (n, image_channels + 2, h, w).
            timestep: c_noise of the scheduler's preconditioning (n,).
            class_labels: (n,), -1 for "no class".
            return_dict: whether to return an output of diffusers with F as its ``sample``; else a tuple.
        """
        # With weights in half precision, noise levels and coordinates are still turned into waves in float32.
        half = self.dtype in (torch.float16, torch.bfloat16)
        with torch.autocast(sample.device.type, self.dtype) if half else nullcontext():
            output = self.network(sample, timestep, class_labels)
        return UNet2DOutput(sample=output) if return_dict else (output,)
