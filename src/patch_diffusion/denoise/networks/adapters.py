"""Adapters, with which a denoiser can use networks of other libraries."""

from __future__ import annotations

from typing import Annotated as Float, Annotated as Int, Any

import torch
from torch import Tensor, nn

from patch_diffusion.errors import InputError, option_error


class DiffusersNetwork(nn.Module):
    """An adapter that makes a diffusers ``UNet2DModel`` the network of a `Denoiser`.

    You build the model, so this package does not need diffusers. ``network.unet`` stays a diffusers model and can be
    saved as one. To open the folder of a training with this network, use ``load(run, network=...)``.

    The model expects timesteps of about 0 to 1000, which it embeds as sines and cosines with periods from 6 upwards.
    The EDM process' c_noise = ln(sigma) / 4 runs from -1.6 to 1.1 and would look like a single timestep; multiplied by
    1000, it has the range that the model was made for (negative values do not matter to a sine).

    Args:
        unet: a ``UNet2DModel`` with ``in_channels`` equal to the image channels plus 2 for coordinates,
            ``out_channels`` equal to the image channels, and, if it has classes, ``num_class_embeds`` equal to their
            number plus 1 for "no class".
        num_classes: number of classes it is conditioned on; 0 for none.
        label_dropout: share of the labels that training replaces by "no class", which makes guidance possible.
        timestep_scale: the factor by which c_noise is multiplied to get the timestep. 1000 suits the EDM process, 250
            the VE process, and 1 the VP process, whose c_noise is a timestep already.
        coords: if true, the input has the two coordinate channels.
        context: if true, it has the channels of a small copy of the whole image, too, see `Denoiser`.

    Raises:
        InputError: the model was built with other channels, numbers of classes or kinds of embeddings.

    >>> from diffusers.models.unets.unet_2d import UNet2DModel
    >>> channels = {"in_channels": 3, "out_channels": 1, "block_out_channels": (8,), "norm_num_groups": 4}
    >>> blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "layers_per_block": 1}
    >>> network = DiffusersNetwork(UNet2DModel(**channels, **blocks))
    >>> network(torch.zeros(2, 3, 8, 12), torch.zeros(2)).shape
    torch.Size([2, 1, 8, 12])
    """

    def __init__(
        self,
        unet: nn.Module,
        *,
        num_classes: int = 0,
        label_dropout: float = 0.1,
        timestep_scale: float = 1000.0,
        coords: bool = True,
        context: bool = False,
    ) -> None:
        super().__init__()
        if "UNet2DModel" not in (kind.__name__ for kind in type(unet).__mro__):
            raise InputError(f"DiffusersNetwork takes a diffusers UNet2DModel, not a {type(unet).__name__}")
        if not 0 <= label_dropout < 1:
            raise option_error("network.label_dropout", f"is a probability in [0, 1), not {label_dropout}")
        config: Any = unet.config
        _check(config, num_classes, coords=coords, context=context)
        self.unet = unet
        self.image_channels: int = config.out_channels
        self.context = context
        self.num_classes = num_classes
        self.label_dropout: float = label_dropout if num_classes else 0.0
        self.timestep_scale = timestep_scale
        self.stride: int = 2 ** (len(config.block_out_channels) - 1)

    def forward(
        self,
        x: Float[Tensor, "n channels height width"],
        c_noise: Float[Tensor, "n"],
        labels: Int[Tensor, "n"] | None = None,
    ) -> Float[Tensor, "n image_channels height width"]:
        """Run the network on noisy images; return its raw output. It is called as `UNet.forward` is."""
        if self.num_classes:
            labels = torch.full_like(c_noise, -1, dtype=torch.long) if labels is None else labels
            labels = labels.where(labels >= 0, self.num_classes)
        return self.unet(x, timestep=self.timestep_scale * c_noise, class_labels=labels).sample

    @property
    def recompute(self) -> bool:
        """True if the model computes its blocks again in the backward pass, to save memory."""
        return getattr(self.unet, "is_gradient_checkpointing", False)

    @recompute.setter
    def recompute(self, value: bool) -> None:
        unet: Any = self.unet
        if value != self.recompute:
            unet.enable_gradient_checkpointing() if value else unet.disable_gradient_checkpointing()


def _check(config: Any, num_classes: int, *, coords: bool, context: bool) -> None:
    """Raise InputError if a diffusers model was built for other images, classes or noise levels."""
    expected = {
        "in_channels": config.out_channels + 2 * coords + (config.out_channels + 1) * context,
        "num_class_embeds": num_classes + 1 if num_classes else None,
        "class_embed_type": None,
        # The other kinds embed noise levels instead of their logarithms, or whole numbers only.
        "time_embedding_type": "positional",
    }
    reasons = {
        "in_channels": f"the {config.out_channels} channels of the images"
        + " and 2 of coordinates" * coords
        + f" and {config.out_channels + 1} of a context" * context,
        "num_class_embeds": f"{num_classes} classes" + " and one embedding for 'no class'" * (num_classes > 0),
        "class_embed_type": "classes by number",
        "time_embedding_type": "continuous noise levels",
    }
    for name, value in expected.items():
        if (found := getattr(config, name)) != value:
            raise InputError(
                f"the UNet2DModel was built with {name}={found!r}: build it with {name}={value!r}, for {reasons[name]}"
            )
