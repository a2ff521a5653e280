"""Low-rank updates (LoRA, arXiv 2106.09685) of the layers of a network, by the library peft."""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

from typing import Any

import torch
from torch import nn

from patch_diffusion.config import Config
from patch_diffusion.denoise.networks.adapters import DiffusersNetwork
from patch_diffusion.denoise.networks.dit import DiT
from patch_diffusion.denoise.networks.timestep_unet import TimestepUNet
from patch_diffusion.denoise.networks.unet import UNet
from patch_diffusion.errors import InputError, need, option_error
from patch_diffusion.streams import stream_key

_NETWORKS = (UNet, DiT, TimestepUNet, DiffusersNetwork)
_LAYERS = (nn.Linear, nn.Conv2d)  # a subclass does something else, too
_NAME = "default"


def add_lora(network: nn.Module, config: Config) -> None:
    """Replace the linear and convolutional layers of a network, in place, by ones with low-rank updates to train.

    All other weights stay as they are. At first the updates are zero.

    Raises:
        InputError: the network is another one, peft is not installed, or another option does not go with it.
    """
    rank, options = config.optimizer.lora, config.optimizer
    if not isinstance(rank, int) or rank < 1:
        raise option_error("optimizer.lora", f"is a rank of at least 1, not {rank}")
    if not isinstance(network, _NETWORKS):
        raise option_error(
            "optimizer.lora",
            f"is for networks of this package and the UNet2DModel of diffusers, not for a {type(network).__name__}",
        )
    for name, other in (
        ("optimizer.only", options.only is not None),
        ("optimizer.kind schedule_free", options.kind == "schedule_free"),
        ("engine.shard", config.engine.shard),
    ):
        if other:
            raise option_error("optimizer.lora", f"does not go with {name}: leave one of them out")
    peft: Any = need("peft", "lora", "optimizer.lora")
    targets = [name for name, module in network.named_modules() if type(module) in _LAYERS]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_key(config.seed, "lora"))
        try:
            peft.inject_adapter_in_model(
                peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), network, adapter_name=_NAME
            )
        except (ValueError, RuntimeError) as error:
            raise InputError(f"peft cannot adapt the network: {error}", option="optimizer.lora") from None


@torch.no_grad()
def merge(network: nn.Module, plain: nn.Module) -> None:
    """Write the weights of a network, low-rank updates added, into one of the same layers without such updates."""
    layers = dict(plain.named_modules())
    for name, module in network.named_modules():
        delta = getattr(module, "get_delta_weight", None)
        if delta is not None:
            base: Any = module.base_layer
            target: Any = layers[name]
            target.weight.copy_(base.weight + delta(_NAME))
