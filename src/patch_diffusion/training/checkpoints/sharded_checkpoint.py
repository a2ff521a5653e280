"""Checkpoints of a run whose processes share the model: each writes its own slices.

Weights and optimizer go through ``torch.distributed.checkpoint`` in its safetensors format, which says of every slice
where in the whole it lies, and holds no pickle; so any number of processes can continue, sharing the model or not. The
averages are written whole by the first process: they are what is sampled from, also without this run's processes.
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
"""The folder of the slices in a checkpoint."""

SHARED = ("weights", "optimizer")
"""What is written in slices."""


@dataclass(frozen=True)
class Slice:
    """This process' slice of a tensor, as plain numbers in the host's memory.

    ``torch.distributed.checkpoint`` would take a ``DTensor`` as it is, but those are for one thread: a process that
    computed with some while a thread of it wrote others has died of it.

    Args:
        numbers: the slice.
        offset: where in the whole it begins.
        shape: of the whole.
    """

    numbers: Tensor
    offset: torch.Size
    shape: torch.Size

    @classmethod
    def of(cls, tensor: Tensor) -> Slice:
        """A copy of what this process has of a tensor, made by the thread that computes with it."""
        if not is_sharded(tensor):
            return cls(tensor.detach().to("cpu", copy=True), torch.Size([0] * tensor.ndim), tensor.shape)
        (chunk,) = tensor.__create_chunk_list__()
        return cls(tensor.to_local().detach().to("cpu", copy=True), chunk.offsets, tensor.shape)

    def __create_write_items__(self, name: str, _: object) -> list[Any]:
        """What there is to write of it, for ``torch.distributed.checkpoint``."""
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
        from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

        chunk = ChunkStorageMetadata(self.offset, self.numbers.shape)
        data = TensorWriteData(chunk, TensorProperties.create_from_tensor(self.numbers), self.shape)
        return [WriteItem(MetadataIndex(name, self.offset), WriteItemType.SHARD, tensor_data=data)]


@dataclass(frozen=True)
class SharedCopies:
    """`checkpoint.Copies` in processes that share the model: of weights and optimizer each has its ``slices``.

    The others, ``groups``, are whole, in the first process.
    """

    slices: dict[str, Slice]
    groups: dict[str, dict[str, Tensor]]
    processes: dist.ProcessGroup
    """All of them, in a group that nothing else uses at the same time."""

    @classmethod
    def of(cls, groups: Mapping[str, Mapping[str, Tensor]], processes: dist.ProcessGroup) -> SharedCopies:
        """All processes must do this together."""
        first = dist.get_rank(processes) == 0
        return cls(
            {f"{name}.{key}": Slice.of(tensor) for name in SHARED for key, tensor in groups[name].items()},
            {name: gathered(group, keep=first) for name, group in groups.items() if name not in SHARED},
            processes,
        )

    def write(self, folder: Path, state: Mapping[str, Any]) -> None:
        """All processes together, on a disk that all of them see; it is complete when all of them are done.

        Raises:
            InputError: it could not be written, by whichever of them; in all of them.
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
    """What was written, by processes that shared the model or not, as this network lies: in slices, or whole.

    Each process checks some of the files, and all agree on what is damaged.
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
    """Around what may fail in one process: then it has failed in all.

    Raises:
        InputError: the first reason, in all processes of the group.
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
    """The weights and optimizer's tensors as the network lies."""
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
            # Each process reads what it needs by itself, of files that all see.
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
    """What went wrong at the bottom of torch's report, in one line."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    return " ".join(str(error).split())[:200]
