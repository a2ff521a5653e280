"""A base class that gives networks of this package the interface of diffusers' networks."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext
from typing import Any

import safetensors.torch  # noqa: F401  # diffusers 0.32 uses it and relies on others to import it
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn


class ExportedNetwork(ModelMixin, ConfigMixin):
    """The base class of exported networks: a subclass names the class of its ``network``, made as its config says."""

    def __init__(self, make: Callable[..., nn.Module], without: Collection[str] = ()) -> None:
        super().__init__()
        config: Any = self.config
        given = {name: value for name, value in config.items() if not name.startswith("_") and name not in without}
        self.network: nn.Module = make(**given)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
        attributes: Tensor | None = None,
    ) -> Any:
        """Compute the raw output F (n, image_channels, h, w) of the network, from which preconditioning makes images.

        Args:
            sample: scaled noisy images with their coordinates (n, image_channels + 2, h, w).
            timestep: c_noise of the scheduler's preconditioning (n,).
            class_labels: (n,), -1 for "no class".
            return_dict: whether to return an output of diffusers with F as its ``sample``; else a tuple.
            attributes: vectors of the attributes of the images, (n, attribute_channels).
        """
        # With weights in half precision, noise levels and coordinates are still turned into waves in float32.
        half = self.dtype in (torch.float16, torch.bfloat16)
        with torch.autocast(sample.device.type, self.dtype) if half else nullcontext():
            output = self.network(sample, timestep, class_labels, None, attributes)
        return UNet2DOutput(sample=output) if return_dict else (output,)
