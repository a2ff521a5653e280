"""The hardware a run is on: devices, processes, number formats. A thin layer over torch's own.

Every process holds the whole model and takes a share of each batch. Which samples are in a batch, and all that is
random about them, does not depend on how many processes share it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from patch_diffusion.config import Engine as Options
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.loss import denoising_loss
from patch_diffusion.errors import InputError
from patch_diffusion.training.lost import GIVEN_UP_AFTER, others_answer

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """One process of a run, and what it has to do with the others.

    Args:
        options: see `patch_diffusion.config.Engine`.

    Attributes:
        rank, world: the number of this process, and how many there are.
        device: where this process computes.
    """

    @others_answer()
    def __init__(self, options: Options) -> None:
        if options.accumulation < 1:
            raise InputError(f"engine.accumulation is at least 1, not {options.accumulation}")
        if options.threads is not None:
            if options.threads < 1:
                raise InputError(f"engine.threads is at least 1, not {options.threads}")
            torch.set_num_threads(options.threads)
        self.options = options
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.device = _device_of_process(options.device, self.world)
        self._hosts: dist.ProcessGroup | None = None
        if self.world > 1:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            if not dist.is_initialized():
                dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=GIVEN_UP_AFTER)
            # What the hosts tell each other must not wait for the devices.
            self._hosts = dist.new_group(  # pyright: ignore[reportAttributeAccessIssue]
                backend="gloo", timeout=GIVEN_UP_AFTER
            )
        self.type = _TYPES[_precision(options.precision, self.device)]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.type is torch.float16)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    @others_answer()
    def prepare(self, denoiser: Denoiser) -> nn.Module:
        """The denoising loss as a module ``(clean, coords, sigma, labels, augment, noise) -> (n,)`` of this engine.

        The denoiser is moved to the device.
        """
        loss: nn.Module = DenoisingLoss(place(denoiser, self.device))
        if self.options.compile:
            # One graph per patch size; sizes that change would otherwise be made dynamic, and slow.
            loss.compile(dynamic=False)
        if self.world > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            loss = DistributedDataParallel(loss, device_ids=devices, gradient_as_bucket_view=True)
        return loss

    def shares(self, num: int) -> list[range]:
        """The samples of a batch of ``num`` that this process takes, in the parts that gradients are accumulated over.

        Parts differ by at most one sample.
        """
        parts = self.world * self.options.accumulation
        bounds = [num * part // parts for part in range(parts + 1)]
        mine = range(self.rank * self.options.accumulation, (self.rank + 1) * self.options.accumulation)
        return [range(bounds[part], bounds[part + 1]) for part in mine]

    def computing(self) -> AbstractContextManager[Any]:
        """Inside, the network computes in the engine's number format."""
        if self.type is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.type)

    @contextmanager
    def accumulating(self, loss: nn.Module, *, last: bool) -> Iterator[None]:
        """Around forward and backward of a part: gradients are exchanged after the last one only."""
        if isinstance(loss, DistributedDataParallel) and not last:
            with loss.no_sync():
                yield
            return
        yield

    def backward(self, loss: Tensor) -> None:
        """Gradients of this process' share of a loss; they are averaged over the processes, so it is scaled up."""
        self.scaler.scale(loss * self.world).backward()

    def step(self, optimizer: torch.optim.Optimizer, clip: float | None) -> None:
        """Move the weights by their gradients, which are then gone."""
        if clip is not None:
            self.scaler.unscale_(optimizer)
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad()

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes, on the device."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def agree(self, seconds: float, stop: bool) -> tuple[float, bool]:
        """The first process' clock, and whether any process is to stop, on all processes."""
        if self._hosts is None:
            return seconds, stop
        shared = torch.tensor([seconds if self.first else 0.0, float(stop)], dtype=torch.float64)
        dist.all_reduce(shared, group=self._hosts)
        return shared[0].item(), bool(shared[1] > 0)

    def check_same_step(self, step: int) -> None:
        """Refuse to continue where the processes have found different checkpoints.

        Raises:
            InputError: in all of them; that the run folder is not one and the same.
        """
        if self._hosts is None:
            return
        bounds = torch.tensor([step, -step])
        dist.all_reduce(bounds, dist.ReduceOp.MIN, group=self._hosts)
        least, most = int(bounds[0]), -int(bounds[1])
        if least != most:
            raise InputError(
                f"some processes would continue after step {least:,} and others after step {most:,}: the run folder "
                "must be one and the same on all machines, on a disk that they share"
            )

    def wait(self) -> None:
        """For all processes to come here."""
        if self._hosts is not None:
            dist.barrier(group=self._hosts)


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
    ) -> Tensor:
        """``(n,)``, see `denoising_loss`."""
        return denoising_loss(self.denoiser, clean, coords, sigma, labels, augment=augment, noise=noise)


def place(denoiser: Denoiser, device: torch.device) -> Denoiser:
    """Move a denoiser to a device; its convolution weights lie channels last, as the patches do."""
    return denoiser.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; a GPU where there is one for "auto"."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"the device '{name}' is not there: take auto, cpu, cuda, cuda:1 or mps") from None
    return device


def _device_of_process(name: str, world: int) -> torch.device:
    device = choose_device(name)
    if world == 1 or device.type == "cpu":
        return device
    if device.type == "mps":
        raise InputError("a Mac's GPU takes one process: leave out engine.processes, or set engine.device to cpu")
    if device.index is not None:
        raise InputError(f"{world} processes cannot share {name}: set engine.device to cuda, and each takes its own")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise InputError(
            f"process {local} of this machine has no GPU, which has {torch.cuda.device_count()}: start fewer processes"
        )
    return torch.device("cuda", local)


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
