"""The magnitude-preserving U-Net of this package as a diffusers model."""

from __future__ import annotations

from diffusers.configuration_utils import register_to_config

from patch_diffusion.denoise.networks.edm2 import EDM2UNet
from patch_diffusion.interop.exported_code.network import ExportedNetwork


class PatchDiffusionEDM2UNet(ExportedNetwork):
    """The magnitude-preserving U-Net of this package, `EDM2UNet`, as a diffusers model with the same arguments."""

    @register_to_config
    def __init__(
        self,
        image_channels: int = 3,
        width: int = 64,
        multipliers: tuple[int, ...] = (1, 2, 2),
        blocks: int = 2,
        attention: tuple[int, ...] | None = None,
        dropout: float = 0.1,
        kind: str = "edm2",
        num_classes: int = 0,
        label_dropout: float = 0.1,
        augment_channels: int = 0,
        attribute_channels: int = 0,
        paired_channels: int = 0,
        coords: bool = True,
    ) -> None:
        super().__init__(EDM2UNet, without=("kind",))
