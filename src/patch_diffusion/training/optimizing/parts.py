"""Parts of networks by name, such as "attention" and "norms", to train only some of them."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from patch_diffusion.errors import did_you_mean, option_error

# Words in the full names of the modules of each part: of the networks of this package, and of those of diffusers.
_WORDS = {
    "attention": {"attention", "attentions", "qkv", "proj"},
    "norms": {"modulation", "last_modulation"},  # and all that torch calls a norm
    "embeddings": {"embed", "embed_noise", "embed_label", "embed_augment", "embed_coords", "embed_context"}
    | {"time_embedding", "class_embedding", "affine", "time_emb_proj"},
    "first": {"first", "conv_in"},
    "last": {"last", "conv_out"},
    "encoder": {"encoder", "down_blocks"},
    "middle": {"middle", "mid_block"},
    "decoder": {"decoder", "up_blocks"},
    "blocks": {"blocks"},
}
_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def parts_of(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the parts of a network that have names, each with its parameters, of which some are in two parts.

    >>> sorted(parts_of(UNet(3, width=8, multipliers=(1,), blocks=1)))
    ['attention', 'decoder', 'embeddings', 'encoder', 'first', 'last', 'middle', 'norms']
    """
    found: dict[str, list[nn.Parameter]] = {}
    for name, module in network.named_modules():
        for part, words in _WORDS.items():
            if words & set(name.split(".")) or (part == "norms" and isinstance(module, _NORMS)):
                found.setdefault(part, []).extend(module.parameters(recurse=False))
    return {part: found[part] for part in _WORDS if found.get(part)}


def train_only(network: nn.Module, parts: Collection[str]) -> None:
    """Keep all parameters as they are but those of the named parts.

    Raises:
        InputError: the network has no part of that name.
    """
    known = parts_of(network)
    for part in parts:
        if part not in known:
            raise option_error("optimizer.only", f"names no part '{part}' of this network{did_you_mean(part, known)}")
    if not parts:
        raise option_error("optimizer.only", f"names no part: choose from {', '.join(known)}, or leave it out")
    kept = {id(parameter) for part in parts for parameter in known[part]}
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in kept)
    for module in network.modules():
        if isinstance(module, nn.GroupNorm) and any(weight.requires_grad for weight in module.parameters()):
            module.register_forward_pre_hook(_with_gradient)


def _with_gradient(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the features that a group norm is given, so that they have a gradient.

    On CPUs, torch 2.13 ends with a segmentation fault where the weights of a group norm have a gradient, and features
    in channels-last memory have none, as all before them stays as it is.
    """
    features, *others = inputs
    if features.requires_grad or features.device.type != "cpu" or not torch.is_grad_enabled():
        return inputs
    return features.detach().requires_grad_(), *others
