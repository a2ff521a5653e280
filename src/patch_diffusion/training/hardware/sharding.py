"""Models shared out over the processes of a run, for those that do not fit on one device (FSDP2).

Every process keeps a slice, along the first axis, of each weight, gradient, moment and average. The weights of a block
are brought together just before it computes, forward and backward, and let go after it, so a device holds its share of
all and the whole of one block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError

if TYPE_CHECKING:  # they take a second to import, which runs that share nothing are spared
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

# A block is brought together by itself, unless it is this small beside the largest: fewer exchanges are quicker.
SMALL_BLOCK = 0.1
# A block that holds this much of the network is itself split into blocks.
LARGE_BLOCK = 0.25

# Modules whose children are called one by one, and so can be blocks: torch brings weights together where a module is
# called, and nothing else tells that it is.
_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def shard(denoiser: Denoiser, mesh: DeviceMesh, type: torch.dtype = torch.float32) -> Denoiser:
    """Keep this process' slices of a model, on the device of the mesh.

    Block by block, so that the device never holds all of it. From then on every process must run the model at the same
    time, on whatever input.

    Args:
        denoiser: the same in all processes; it cannot be copied afterwards.
        mesh: of one axis, the processes.
        type: number format in which blocks are brought together. Autocast would do as well for the result, but a block
            keeps what it is given for the backward pass: with copies by autocast, all weights whole.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    for name, parameter in denoiser.module.named_parameters():
        if parameter.ndim == 0:
            raise InputError(
                f"engine.shard cannot split {name} of the network, which is a single number: give it the shape (1,)"
            )
        parameter.data = parameter.data.contiguous()  # slices of weights that lie channels last are not to be had
    policy = MixedPrecisionPolicy(
        param_dtype=None if type is torch.float32 else type,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # coordinates and noise levels need their digits; autocast does the rest
    )
    for module in [*blocks(denoiser.module), denoiser]:
        # The outermost too is let go after the forward pass: what is read between steps are always the slices.
        fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    return denoiser


def blocks(network: nn.Module) -> list[nn.Module]:
    """The parts of a network that are brought together by themselves, inner ones first.

    Members of lists and sequences that are not small; what is in none of them is brought together for the whole pass.
    """
    found = list(_members(network, _size(network) * LARGE_BLOCK))
    users = Counter(id(parameter) for _, parameter in network.named_parameters(remove_duplicate=False))
    least = SMALL_BLOCK * max(map(_size, found), default=0)
    return [
        block
        for block in found
        if _size(block) >= max(least, 1) and all(users[id(parameter)] == 1 for parameter in block.parameters())
    ]


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether this process holds a slice of it only."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, from the slices of the processes, which must all ask for it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def part(tensor: Tensor, like: Tensor) -> Tensor:
    """This process' slice of a whole tensor, on the device of ``like`` and cut as that is."""
    if is_sharded(tensor) or not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def parts(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`part` of each, by name."""
    return {name: part(tensor, like.get(name, tensor)) for name, tensor in tensors.items()}


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """All whole in the host's memory, or nothing where ``keep`` is off; one after the other, for the device's sake."""
    copies = {}
    for name, tensor in tensors.items():
        complete = whole(tensor.detach())
        if keep:
            copies[name] = complete.to("cpu", copy=True)
    return copies


def _members(module: nn.Module, large: float) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(module, _LISTS) and not isinstance(child, _LISTS):
            if _size(child) > large:
                yield from _members(child, large)
            yield child
        else:
            yield from _members(child, large)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
