"""Checkpoints of a run whose model is sharded over its ranks: each rank writes its own shards.

Weights and optimizer are written by ``torch.distributed.checkpoint`` in its safetensors format, which stores the place
of every shard in the whole tensor and no pickle; so any number of ranks can continue, with a sharded model or not. The
averages are written unsharded by rank 0, since samples are made with them, also without the processes of this run.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from patch_diffusion.errors import InputError
from patch_diffusion.files import sync
from patch_diffusion.training.checkpoints import checkpoint
from patch_diffusion.training.hardware.sharding import gathered, is_sharded, parts

SHARDS = "shards"
"""The name of the folder in a checkpoint that holds the shards."""

SHARED = ("weights", "optimizer")
"""The groups of tensors that a checkpoint holds as shards, one per rank."""


@dataclass(frozen=True)
class Slice:
    """This rank's shard of a tensor, as a plain tensor in host memory.

    ``torch.distributed.checkpoint`` would take a ``DTensor`` as it is, but a DTensor is for one thread only: a
    process that computed with some while another of its threads wrote others has crashed.

    Args:
        numbers: the shard.
        offset: the position in the whole tensor at which the shard begins.
        shape: the shape of the whole tensor.
    """

    numbers: Tensor
    offset: torch.Size
    shape: torch.Size

    @classmethod
    def of(cls, tensor: Tensor) -> Slice:
        """Copy this rank's shard of a tensor to host memory; call it in the thread that computes with the tensor."""
        if not is_sharded(tensor):
            return cls(tensor.detach().to("cpu", copy=True), torch.Size([0] * tensor.ndim), tensor.shape)
        (chunk,) = tensor.__create_chunk_list__()
        return cls(tensor.to_local().detach().to("cpu", copy=True), chunk.offsets, tensor.shape)

    def __create_write_items__(self, name: str, _: object) -> list[Any]:
        """Return the write items of this shard, for ``torch.distributed.checkpoint``."""
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
        from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

        chunk = ChunkStorageMetadata(self.offset, self.numbers.shape)
        data = TensorWriteData(chunk, TensorProperties.create_from_tensor(self.numbers), self.shape)
        return [WriteItem(MetadataIndex(name, self.offset), WriteItemType.SHARD, tensor_data=data)]


@dataclass(frozen=True)
class SharedCopies:
    """The copies of a sharded run's tensors to write to a checkpoint, as `checkpoint.Copies` are of an unsharded run.

    Each rank has its ``slices`` of weights and optimizer; rank 0 has all other ``groups`` of tensors, unsharded.
    """

    slices: dict[str, Slice]
    groups: dict[str, dict[str, Tensor]]
    processes: dist.ProcessGroup
    """The process group of all ranks, which nothing else uses at the same time."""

    @classmethod
    def of(cls, groups: Mapping[str, Mapping[str, Tensor]], processes: dist.ProcessGroup) -> SharedCopies:
        """Copy the tensors of all groups to host memory; all ranks must call this together."""
        first = dist.get_rank(processes) == 0
        return cls(
            {f"{name}.{key}": Slice.of(tensor) for name in SHARED for key, tensor in groups[name].items()},
            {name: gathered(group, keep=first) for name, group in groups.items() if name not in SHARED},
            processes,
        )

    def write(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Write the checkpoint, all ranks together, to a shared disk; it is complete when all ranks have returned.

        Raises:
            InputError: some rank could not write its shards; raised on all ranks.
        """
        rank, world = dist.get_rank(self.processes), dist.get_world_size(self.processes)
        partial = checkpoint.partial_name(folder)
        checksums: dict[str, str] = {}
        try:
            with together(self.processes):
                if rank == 0:
                    tensors = [piece.numbers for piece in self.slices.values()]
                    tensors += [tensor for group in self.groups.values() for tensor in group.values()]
                    checkpoint.begin(folder, sum(tensor.nbytes for tensor in tensors))
            with together(self.processes):
                _write_slices(partial / SHARDS, self.slices, self.processes)
                if rank == 0:
                    checksums |= checkpoint.write_groups(partial, self.groups)
            with together(self.processes):
                for file in sorted((partial / SHARDS).iterdir())[rank::world]:
                    checksums[f"{SHARDS}/{file.name}"] = checkpoint.file_checksum(file)
            of_all: list[dict[str, str]] = [{}] * world
            dist.all_gather_object(of_all, checksums, group=self.processes)
            with together(self.processes):
                if rank == 0:
                    sync(partial / SHARDS)
                    found = {name: checksum for each in of_all for name, checksum in each.items()}
                    checkpoint.complete(folder, state, found)
        except BaseException:
            if rank == 0:
                checkpoint.abandon(folder)
            raise


def read_shared_checkpoint(
    folder: Path, network: nn.Module, group: dist.ProcessGroup | None
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read a checkpoint, of a sharded run or not, and return its tensors, sharded as the network is, and its state.

    Each rank verifies some of the files, and all ranks raise the same error if one is damaged.
    """
    rank, world = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    with together(group):
        state = checkpoint.verify(folder, rank, world)
    with together(group):
        content = checkpoint.read_groups(folder, state)
        if any(name.startswith(SHARDS) for name in state["checksums"]):
            content |= _read_slices(folder / SHARDS, network)
    del state["checksums"]
    if any(map(is_sharded, network.parameters())):
        lie = network.state_dict()
        content = {name: tensors if name == "optimizer" else parts(tensors, lie) for name, tensors in content.items()}
    return content, state


@contextmanager
def together(group: dist.ProcessGroup | None) -> Iterator[None]:
    """Run the with block on all ranks of a group, and raise on all of them if it fails on any.

    Raises:
        InputError: the block failed; the reason is that of the first failed rank, on all ranks.
    """
    if group is None:
        yield
        return
    reason = None
    try:
        yield
    except (InputError, OSError) as error:
        reason = str(error)
    reasons: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(reasons, reason, group=group)
    for found in reasons:
        if found is not None:
            raise InputError(found)


def _write_slices(folder: Path, slices: dict[str, Slice], group: dist.ProcessGroup) -> None:
    from torch.distributed.checkpoint import DefaultSavePlanner, HuggingFaceStorageWriter, save
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.metadata import MetadataIndex

    class Planner(DefaultSavePlanner):
        def lookup_object(self, index: MetadataIndex) -> Tensor:
            return slices[index.fqn].numbers

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save({**slices}, storage_writer=writer, planner=Planner(), process_group=group)
    except CheckpointException as error:
        raise OSError(f"cannot write {folder}: {_reason(error)}") from None


def _read_slices(folder: Path, network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Read the weights and the optimizer's tensors from shards, sharded as the network is."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load
    from torch.distributed.checkpoint.api import CheckpointException

    parameters, weights = dict(network.named_parameters()), network.state_dict()
    reader = HuggingFaceStorageReader(str(folder))
    wanted: dict[str, Any] = {}
    try:
        for name, stored in reader.read_metadata().state_dict_metadata.items():
            group, _, key = name.partition(".")
            like = weights.get(key) if group == "weights" else parameters.get(key.rpartition(".")[0])
            shape, dtype = stored.size, stored.properties.dtype  # pyright: ignore[reportAttributeAccessIssue]
            if like is not None and is_sharded(like) and like.shape == shape:
                wanted[name] = torch.empty_like(like, dtype=dtype, requires_grad=False)
            else:
                wanted[name] = torch.empty(shape, dtype=dtype)
        with warnings.catch_warnings():
            # Each rank reads the shards that it needs by itself, from files that all ranks see.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(wanted, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    except (CheckpointException, RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"{folder} is damaged: {_reason(error)}") from None
    content: dict[str, dict[str, Tensor]] = {name: {} for name in SHARED}
    for name, tensor in wanted.items():
        group, _, key = name.partition(".")
        content[group][key] = tensor
    return content


def _reason(error: BaseException) -> str:
    """Return the root cause in torch's report of a checkpoint error, as one line."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    return " ".join(str(error).split())[:200]
