"""The hardware of a run: device, ranks, number format. A thin layer over torch's own.

Every rank takes a share of each batch, and holds the whole model, or with ``shard`` a shard of it. Which samples are in
a batch, and all that is random about them, does not depend on the number of ranks.
"""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from patch_diffusion.config import Engine as Options
from patch_diffusion.denoise.compiling import explain_failure
from patch_diffusion.denoise.denoiser import Denoiser, place
from patch_diffusion.denoise.objective import Batch, Objective
from patch_diffusion.denoise.threads import backward, sharing
from patch_diffusion.devices import check_format, device_of_process, has_bf16
from patch_diffusion.errors import about, option_error
from patch_diffusion.processes import cores, explain_lost_peer
from patch_diffusion.training.hardware import compiling
from patch_diffusion.training.hardware.group import Group
from patch_diffusion.training.hardware.sharding import shard, whole

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """The device, ranks and number format that one process of a run computes with.

    Args:
        options: see `patch_diffusion.config.Engine`.

    Attributes:
        device: the device of this process.
        accumulation: microbatches per step of this rank; for "auto" 1, until the trainer knows how many it needs.
        group: the ranks of the run, of which this process is one.
        compiled: True if the training objective is compiled, False if that was tried and is not right; None before.
    """

    @explain_lost_peer()
    def __init__(self, options: Options) -> None:
        if options.accumulation != "auto" and options.accumulation < 1:
            raise option_error("engine.accumulation", f"is at least 1, not {options.accumulation}")
        if options.threads is not None:
            if options.threads < 1:
                raise option_error("engine.threads", f"is at least 1, not {options.threads}")
            torch.set_num_threads(options.threads)
        elif "LOCAL_WORLD_SIZE" in os.environ and "OMP_NUM_THREADS" not in os.environ:
            # Processes that each compute with a thread per core would only wait for one another.
            torch.set_num_threads(max(cores() // int(os.environ["LOCAL_WORLD_SIZE"]), 1))
        self.options = options
        self.accumulation: int = 1 if options.accumulation == "auto" else options.accumulation
        world = int(os.environ.get("WORLD_SIZE", "1"))
        self.device: torch.device = device_of_process(options.device, world)
        if options.shard:
            _check_sharding(options, world)
        self.group: Group = Group(int(os.environ.get("RANK", "0")), world, self.device, sharing=options.shard)
        self.type: torch.dtype = _TYPES[_precision(options.precision, self.device)]
        self.scaler: torch.amp.GradScaler = torch.amp.GradScaler(self.device.type, enabled=self.type is torch.float16)
        self.compiled: bool | None = None
        if self.device.type == "cuda":
            # The one function for this that torch.compile understands in each version. Convolutions take TF32 anyway.
            torch.set_float32_matmul_precision("high")

    def __str__(self) -> str:
        """Return the device, and the number formats in which a GPU computes: "cuda (bf16, and TF32 for fp32)"."""
        if self.device.type != "cuda":
            return str(self.device)
        has_tf32 = torch.cuda.get_device_capability(self.device) >= (8, 0)
        name = next(name for name, type in _TYPES.items() if type is self.type)
        return f"{self.device} ({name}{', and TF32 for fp32' if has_tf32 else ''})"

    def place_average(self, denoiser: Denoiser) -> None:
        """Move a weight average of the model to the device, or only this rank's shard of it."""
        if self.options.shard:
            shard(denoiser, self._mesh())
        else:
            place(denoiser, self.device)

    @explain_lost_peer()
    def wrap(self, objective: Objective) -> nn.Module:
        """Move a training objective to the device, or this rank's shard of it; wrap it for many ranks."""
        _set_recompute(objective.denoiser, recompute=self.options.recompute)
        if self.options.shard:
            shard(objective.denoiser, self._mesh(), self.type)
            for module in objective.children():
                if module is not objective.denoiser:
                    module.to(self.device)
            return objective
        place(objective.denoiser, self.device)
        objective.to(self.device)
        if self.group.world == 1:
            return objective
        devices = [self.device] if self.device.type == "cuda" else None
        wrapped = DistributedDataParallel(objective, device_ids=devices, gradient_as_bucket_view=True)
        # Only from here on: at the beginning torch makes all buffers equal.
        wrapped.broadcast_buffers = _has_changing_buffers(objective)
        return wrapped

    def compile(self, objective: Objective, graphs: int) -> None:
        """Compile a training objective, which `wrap` may have wrapped: torch then splits its graph by DDP's buckets.

        Args:
            objective: the objective itself.
            graphs: the number of shapes in which it is called, each of which becomes a graph.
        """
        compiling.compile_in_place(objective, graphs)
        self.compiled = True

    def compile_if_right(self, module: nn.Module, objective: Objective, batch: Batch, graphs: int) -> str:
        """Compile a training objective if a compiled pass on a batch works on all ranks and agrees with an eager one.

        Neither the weights, their gradients, buffers nor random numbers of the training change.

        Args:
            module: the objective as `wrap` returned it.
            objective: the objective itself.
            batch: a microbatch.
            graphs: see `compile`.

        Returns:
            The reason why it is not compiled; an empty text if it is.
        """
        tolerance = compiling.TOLERANCE if self.type is torch.float32 else compiling.TOLERANCE_IN_HALF
        with self._exchanging(module, last=False):
            reason = compiling.difference(module, objective, batch, graphs, self.autocast, tolerance)
        if self.group.max(bool(reason)):
            compiling.undo(objective)
            self.compiled = False
            return reason or "it failed in another process"
        self.compiled = True
        return ""

    def threads(self, denoiser: Denoiser) -> AbstractContextManager[None]:
        """Return a context manager in which CPU threads share each batch of the model, if they can; see `sharing`."""
        alone = self.group.world == 1 and not self.compiled
        return sharing(denoiser) if alone else nullcontext()

    def microbatches(self, num: int) -> list[range]:
        """Return which of ``num`` samples this rank takes: a list of index ranges, one for each microbatch.

        Microbatches are of one size where that divides ``num``, else they differ by one sample: of each patch size,
        a compiled network sees two shapes at most.
        """
        parts = self.group.world * self.accumulation
        bounds = [num * part // parts for part in range(parts + 1)]
        mine = range(self.group.rank * self.accumulation, (self.group.rank + 1) * self.accumulation)
        return [range(bounds[part], bounds[part + 1]) for part in mine]

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context manager in which the network computes in the engine's number format."""
        if self.type is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.type)

    def backward(self, module: nn.Module, batch: Batch, weight: float | Tensor, *, last: bool = True) -> Tensor:
        """Add the gradients of a weighted sum of losses to those of the parameters.

        Gradients are averaged over the ranks, so those of each rank's share are scaled up. They are exchanged after the
        ``last`` microbatch only; those of a sharded model after each, or every rank would hold them whole in between.

        Args:
            module: the training objective that `wrap` returned.
            batch: a microbatch.
            weight: the factor of each loss in the sum, one number for all or ``(n,)``.
            last: True if this is the last microbatch of the step.

        Returns:
            The losses ``(n,)``, without a graph.
        """
        if self.group.world == 1 and (shared := backward(module, batch, weight, self.autocast)) is not None:
            return shared
        explained = explain_failure("engine.compile") if self.compiled else nullcontext()
        with self._exchanging(module, last=last), explained:
            with self.group.busy() if self.group.world > 1 else nullcontext(), self.autocast():
                losses = module(batch)
            self.scaler.scale((losses * weight).sum() * self.group.world).backward()
        return losses.detach()

    def _exchanging(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Return a context manager in which gradients are exchanged between ranks only by the last microbatch."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) and not last else nullcontext()

    def step(self, optimizer: torch.optim.Optimizer, clip: float | None) -> Tensor:
        """Clip the gradients, take an optimizer step, and clear the gradients.

        Returns:
            1.0 if the step was skipped, as the gradients were not finite, else 0.0; a tensor on the device.
        """
        self.scaler.unscale_(optimizer)
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = whole(norm) if self.options.shard else norm
        if clip is not None:
            factor = (clip / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]
        skipped = (norm < math.inf).logical_not().float()
        if not getattr(optimizer, "_step_supports_amp_scaling", False):
            # This optimizer cannot skip a step; with gradients of 0 it changes next to nothing.
            for gradient in gradients:
                gradient.copy_(torch.where(skipped > 0, 0.0, gradient))
            optimizer.step()
        elif self.scaler.is_enabled():
            self.scaler.step(optimizer)
        else:
            # As GradScaler does: a fused optimizer skips the step on the device where found_inf is 1, without a wait.
            optimizer.found_inf, optimizer.grad_scale = skipped, None  # pyright: ignore[reportAttributeAccessIssue]
            optimizer.step()
        self.scaler.update()
        optimizer.zero_grad()
        return skipped

    def all_reduce_sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks, on the device."""
        if self.group.world > 1:
            dist.all_reduce(value)
        return value

    def synchronize(self) -> None:
        """Wait for queued device work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def _mesh(self) -> DeviceMesh:
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(self.device.type, (self.group.world,))


def _set_recompute(denoiser: Denoiser, *, recompute: bool) -> None:
    """Let a network compute its blocks again in the backward pass, or not; raise InputError if it does not know how."""
    network: Any = denoiser.module
    if hasattr(network, "recompute"):
        network.recompute = recompute
    elif recompute:
        raise option_error(
            "engine.recompute", "needs a network with an attribute recompute, and this one has none: leave it out"
        )


def _has_changing_buffers(objective: Objective) -> bool:
    """Return True if an objective has buffers that a step may change, such as the means that a batch norm keeps.

    Those of this package's networks are constants; of a network or module of somebody else nothing is known.
    """
    denoiser = objective.denoiser
    constants = {id(buffer) for buffer in denoiser.buffers(recurse=hasattr(denoiser.network, "settings"))}
    return any(id(buffer) not in constants for buffer in objective.buffers())


def _check_sharding(options: Options, world: int) -> None:
    if world == 1:
        raise option_error(
            "engine.shard",
            "shares the model over several processes, and this run has one: set engine.processes, start "
            "it with torchrun, or leave out engine.shard",
        )
    if options.compile:
        raise option_error("engine.compile", "and engine.shard do not go together: leave one out")
    if options.accumulation == "auto":
        # Processes would try what fits in different numbers of passes, and wait for one another in the last pass.
        raise option_error("engine.accumulation", "auto and engine.shard do not go together: give the number of parts")
    if not hasattr(import_module("torch.distributed.checkpoint"), "HuggingFaceStorageWriter"):
        raise option_error("engine.shard", f"needs torch 2.8 or newer, not {torch.__version__}")


@about("engine.precision")
def _precision(name: str, device: torch.device) -> str:
    """Return the number format for a device, chosen for "auto"; raise InputError if the device lacks it."""
    if name == "auto":
        return "bf16" if has_bf16(device) else "fp16" if device.type == "cuda" else "fp32"
    check_format(name, device)
    return name
