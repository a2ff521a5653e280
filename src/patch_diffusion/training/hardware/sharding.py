"""Sharding of a model over the ranks of a run, for models that do not fit on one device (FSDP2).

Every rank keeps a shard, along the first axis, of each weight, gradient, moment and average. The weights of a block
are gathered just before it computes, forward and backward, and freed after it, so a device holds its shards of all
blocks and the whole of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import option_error

if TYPE_CHECKING:  # these take a second to import, which unsharded runs should not pay
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

# A block below this fraction of the largest is not gathered by itself, as fewer exchanges are quicker.
SMALL_BLOCK = 0.1
# A block above this fraction of the network is itself split into blocks.
LARGE_BLOCK = 0.25

# The children of these modules are called one by one, and so can be blocks: torch gathers weights when a module is
# called, and there is no other sign that a module is called.
_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def shard(denoiser: Denoiser, mesh: DeviceMesh, type: torch.dtype = torch.float32) -> Denoiser:
    """Shard a model over the ranks of a mesh, so that this rank keeps its shards on its device.

    This goes block by block, so that the device never holds the whole model. From then on all ranks must run the model
    at the same time, on whatever input.

    Args:
        denoiser: the model, equal on all ranks; it cannot be copied afterwards.
        mesh: a mesh with one axis, the ranks.
        type: dtype in which blocks are gathered. Autocast would give the same result, but a block keeps its inputs for
            the backward pass: with copies made by autocast, that would be all weights, unsharded.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    for name, parameter in denoiser.module.named_parameters():
        if parameter.ndim == 0:
            raise option_error(
                "engine.shard", f"cannot split {name} of the network, which is a single number: give it the shape (1,)"
            )
        parameter.data = parameter.data.contiguous()  # channels-last weights cannot be sharded
    policy = MixedPrecisionPolicy(
        param_dtype=None if type is torch.float32 else type,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # coordinates and noise levels need full precision; autocast does the rest
    )
    for module in [*blocks(denoiser.module), denoiser]:
        # The outermost module is freed after the forward pass, too, so that code between steps always reads shards.
        fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    return denoiser


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network that are gathered one at a time, inner ones first.

    These are members of lists and sequences that are not small; all other weights are gathered for the whole pass.
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
    """Return True if this rank holds only a shard of a tensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor from the shards of all ranks, which must all call this; return an unsharded tensor as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor as a tensor of its own, in the same memory; an unsharded one as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def sharded(shard: Tensor, like: Tensor) -> Tensor:
    """Return the sharded tensor of which this rank holds a shard, split like another one of the same shape."""
    if not is_sharded(like):
        return shard
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        shard, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def part(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this rank's shard of an unsharded tensor, on the device of ``like`` and split in the same way."""
    if is_sharded(tensor) or not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def parts(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return this rank's shard of each tensor by name, split like the tensor of that name in ``like``."""
    return {name: part(tensor, like.get(name, tensor)) for name, tensor in tensors.items()}


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Gather sharded tensors from all ranks, one by one, into the host memory of those ranks that ``keep`` them."""
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
