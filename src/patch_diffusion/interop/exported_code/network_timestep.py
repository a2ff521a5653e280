"""A network of another pipeline of diffusers that was trained further by this package, as a diffusers model."""

from __future__ import annotations

from typing import Any

from diffusers.configuration_utils import register_to_config

from patch_diffusion.denoise.networks.timestep_unet import TimestepUNet
from patch_diffusion.interop.exported_code.network import ExportedNetwork


class PatchDiffusionTimestepUNet(ExportedNetwork):
    """A network around a ``UNet2DModel``, `TimestepUNet`, as a diffusers model with the same arguments."""

    @register_to_config
    def __init__(
        self,
        image_channels: int = 3,
        unet: dict[str, Any] | None = None,
        dropout: float = 0.0,
        kind: str = "diffusers",
        num_classes: int = 0,
        label_dropout: float = 0.1,
        augment_channels: int = 0,
        coords: bool = True,
    ) -> None:
        super().__init__(TimestepUNet, without=("kind", "augment_channels"))
