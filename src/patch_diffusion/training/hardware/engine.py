"""The hardware a run is on: devices, processes, number formats. A thin layer over torch's own.

Every process takes a share of each batch, and holds the whole model, or with ``shard`` a share of it too. Which samples
are in a batch, and all that is random about them, does not depend on how many processes share it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from patch_diffusion.config import Engine as Options
from patch_diffusion.denoise.denoiser import Denoiser, place
from patch_diffusion.denoise.objective import denoising_loss
from patch_diffusion.denoise.threads import backward, sharing
from patch_diffusion.devices import device_of_process
from patch_diffusion.errors import InputError
from patch_diffusion.processes import others_answer
from patch_diffusion.training.hardware.group import Group
from patch_diffusion.training.hardware.sharding import shard, whole

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """What one process of a run computes with.

    Args:
        options: see `patch_diffusion.config.Engine`.

    Attributes:
        device: where this process computes.
        accumulation: parts that it computes its share of a batch in; for "auto" 1, until the trainer knows better.
        group: the processes of the run, of which this is one.
    """

    @others_answer()
    def __init__(self, options: Options) -> None:
        if options.accumulation != "auto" and options.accumulation < 1:
            raise InputError(f"engine.accumulation is at least 1, not {options.accumulation}")
        if options.threads is not None:
            if options.threads < 1:
                raise InputError(f"engine.threads is at least 1, not {options.threads}")
            torch.set_num_threads(options.threads)
        elif "LOCAL_WORLD_SIZE" in os.environ and "OMP_NUM_THREADS" not in os.environ:
            # Processes that each compute with a thread per core would only wait for one another.
            cores = os.cpu_count() or 1
            torch.set_num_threads(max(cores // int(os.environ["LOCAL_WORLD_SIZE"]), 1))
        self.options = options
        self.accumulation = 1 if options.accumulation == "auto" else options.accumulation
        world = int(os.environ.get("WORLD_SIZE", "1"))
        self.device = device_of_process(options.device, world)
        if options.shard:
            _check_sharding(options, world)
        self.group = Group(int(os.environ.get("RANK", "0")), world, self.device, sharing=options.shard)
        self.type = _TYPES[_precision(options.precision, self.device)]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.type is torch.float16)

    def place_average(self, denoiser: Denoiser) -> None:
        """Move a model that is not trained to the device, or this process' share of it."""
        if self.options.shard:
            shard(denoiser, self._mesh())
        else:
            place(denoiser, self.device)

    @others_answer()
    def prepare(self, denoiser: Denoiser) -> nn.Module:
        """The denoising loss as a module of this engine, see `DenoisingLoss`.

        The denoiser is moved to the device, or this process' share of it.
        """
        if self.options.shard:
            return DenoisingLoss(shard(denoiser, self._mesh(), self.type))
        loss: nn.Module = DenoisingLoss(place(denoiser, self.device))
        if self.options.compile:
            # One graph per patch size; sizes that change would otherwise be made dynamic, and slow.
            loss.compile(dynamic=False)
        if self.group.world > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            loss = DistributedDataParallel(loss, device_ids=devices, gradient_as_bucket_view=True)
        return loss

    def threads(self, denoiser: Denoiser) -> AbstractContextManager[None]:
        """Inside, threads of the CPU share each batch where they can, see `sharing`."""
        alone = self.group.world == 1 and not self.options.compile
        return sharing(denoiser) if alone else nullcontext()

    def shares(self, num: int) -> list[range]:
        """The samples of a batch of ``num`` that this process takes, in the parts that gradients are accumulated over.

        Parts differ by at most one sample.
        """
        parts = self.group.world * self.accumulation
        bounds = [num * part // parts for part in range(parts + 1)]
        mine = range(self.group.rank * self.accumulation, (self.group.rank + 1) * self.accumulation)
        return [range(bounds[part], bounds[part + 1]) for part in mine]

    def computing(self) -> AbstractContextManager[Any]:
        """Inside, the network computes in the engine's number format."""
        if self.type is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.type)

    def backward(
        self, loss: nn.Module, inputs: Sequence[Tensor | None], weight: float | Tensor, *, last: bool = True
    ) -> Tensor:
        """Add the gradients of a weighted sum of losses to those of the parameters.

        Gradients are averaged over the processes, so those of each process' share are scaled up.

        Args:
            loss: see `prepare`.
            inputs: what it takes, of this process' share of the batch or a part of it.
            weight: of each loss in the sum, of all one number or ``(n,)``.
            last: whether no other part of the batch is to come. Gradients are exchanged after that one only; those of a
                shared model after each, or every process would have to hold them whole in between.

        Returns:
            ``(n,)``, the losses, without a graph.
        """
        losses = None if self.group.world > 1 else backward(loss, inputs, weight, self.computing)
        if losses is not None:
            return losses
        with loss.no_sync() if isinstance(loss, DistributedDataParallel) and not last else nullcontext():
            with self.group.busy(), self.computing():
                losses = loss(*inputs)
            self.scaler.scale((losses * weight).sum() * self.group.world).backward()
        return losses.detach()

    def step(self, optimizer: torch.optim.Optimizer, clip: float | None) -> Tensor:
        """Move the weights by their gradients, which are then gone.

        Returns:
            1.0 if the gradients were not finite, and so nothing was moved, else 0.0; still on the device.
        """
        self.scaler.unscale_(optimizer)
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        if clip is not None:
            factor = (clip / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]
        skipped = (~norm.isfinite()).float()
        if self.scaler.is_enabled():
            self.scaler.step(optimizer)
            self.scaler.update()
        elif not getattr(optimizer, "_step_supports_amp_scaling", False):
            # Such an optimizer knows of no steps that are skipped: this one moves next to nothing.
            for gradient in gradients:
                gradient.copy_(torch.where(skipped > 0, 0.0, gradient))
            optimizer.step()
        else:
            # As a scaler of fp16 does: the optimizer leaves all as it is where this is 1, without asking for its value.
            optimizer.found_inf, optimizer.grad_scale = skipped, None  # pyright: ignore[reportAttributeAccessIssue]
            optimizer.step()
        optimizer.zero_grad()
        return skipped

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes, on the device."""
        if self.group.world > 1:
            dist.all_reduce(value)
        return value

    def catch_up(self) -> None:
        """Return when the device has done all that it was asked to."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def _mesh(self) -> DeviceMesh:
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(self.device.type, (self.group.world,))


class DenoisingLoss(nn.Module):
    """`denoising_loss` of a denoiser as a module, which is what torch distributes and compiles."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(
        self,
        clean: Tensor,
        coords: Tensor,
        sigma: Tensor,
        labels: Tensor | None,
        augment: Tensor | None,
        noise: Tensor,
        context: Tensor | None = None,
    ) -> Tensor:
        """``(n,)``, see `denoising_loss`."""
        return denoising_loss(
            self.denoiser, clean, coords, sigma, labels, augment=augment, context=context, noise=noise
        )


def _check_sharding(options: Options, world: int) -> None:
    if world == 1:
        raise InputError(
            "engine.shard shares the model over several processes, and this run has one: set engine.processes, start "
            "it with torchrun, or leave out engine.shard"
        )
    if options.compile:
        raise InputError("engine.compile and engine.shard do not go together: leave one out")
    if options.accumulation == "auto":
        # Each process would try what fits in passes of its own number, and wait for the others in the last.
        raise InputError("engine.accumulation auto and engine.shard do not go together: give the number of parts")
    try:
        from torch.distributed.checkpoint import (
            HuggingFaceStorageWriter,  # noqa: F401  # pyright: ignore[reportPrivateImportUsage]
        )
    except ImportError:
        raise InputError(f"engine.shard needs torch 2.8 or newer, not {torch.__version__}") from None


def _precision(name: str, device: torch.device) -> str:
    """What "auto" means on a device, and no format that it lacks."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "auto":
        return "bf16" if has_bf16 else "fp32"
    if name == "bf16" and device.type == "cuda" and not has_bf16:
        raise InputError("this GPU has no bf16: set engine.precision to fp16 or fp32")
    if name == "fp16" and device.type != "cuda":
        raise InputError(f"engine.precision fp16 is for CUDA: take bf16 or fp32 on {device.type}")
    return name
