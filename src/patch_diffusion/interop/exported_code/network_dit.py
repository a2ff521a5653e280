"""The transformer of this package as a diffusers model."""

from __future__ import annotations

from diffusers.configuration_utils import register_to_config

from patch_diffusion.denoise.networks.dit import DiT
from patch_diffusion.interop.exported_code.network import ExportedNetwork


class PatchDiffusionDiT(ExportedNetwork):
    """The transformer of this package, `DiT`, as a diffusers model with the same arguments."""

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
        attribute_channels: int = 0,
        paired_channels: int = 0,
        coords: bool = True,
    ) -> None:
        super().__init__(DiT, without=("kind",))
