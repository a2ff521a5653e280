"""The hardware a run is on: devices, processes, number formats. A thin layer over torch's own.

Every process takes a share of each batch, and holds the whole model, or with ``shard`` a share of it too. Which samples
are in a batch, and all that is random about them, does not depend on how many processes share it.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from patch_diffusion.config import Engine as Options
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.loss import denoising_loss
from patch_diffusion.denoise.threads import backward, sharing
from patch_diffusion.errors import InputError
from patch_diffusion.training.hardware.lost import GIVEN_UP_AFTER, others_answer
from patch_diffusion.training.hardware.sharding import shard, whole

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_LONGEST_LOOK = timedelta(days=3)

# How much longer a process takes than the middle one, as a factor and in seconds between two lines of the log, before
# the user is told.
_LAGGING, _LAGGING_SECONDS = 1.5, 2.0

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """One process of a run, and what it has to do with the others.

    Args:
        options: see `patch_diffusion.config.Engine`.

    Attributes:
        rank, world: the number of this process, and how many there are.
        device: where this process computes.
        accumulation: parts that it computes its share of a batch in; for "auto" 1, until the trainer knows better.
        hosts, writers: groups of all processes in which hosts talk past the devices, during training and while a
            checkpoint is written behind it; None where they have nothing to say.
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
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.device = device_of_process(options.device, self.world)
        self.hosts: dist.ProcessGroup | None = None
        self.writers: dist.ProcessGroup | None = None
        self._patient: dist.ProcessGroup | None = None
        self._busy, self._busy_of_all = 0.0, np.zeros(self.world)
        if options.shard:
            _check_sharding(options, self.world)
        if self.world > 1:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            if not dist.is_initialized():
                dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=GIVEN_UP_AFTER)
            # What the hosts tell each other must not wait for the devices.
            self.hosts = _group_of_hosts()
            if options.shard:
                self.writers = _group_of_hosts()
            else:
                self._patient = _group_of_hosts(_LONGEST_LOOK)
        self.type = _TYPES[_precision(options.precision, self.device)]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.type is torch.float16)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    @property
    def takes_part(self) -> bool:
        """Whether this process is needed for pictures and checkpoints: the first, and where they share the model all.

        Those that are not the first then do the same and write nothing.
        """
        return self.first or self.options.shard

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
        if self.world > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            loss = DistributedDataParallel(loss, device_ids=devices, gradient_as_bucket_view=True)
        return loss

    def threads(self, denoiser: Denoiser) -> AbstractContextManager[None]:
        """Inside, threads of the CPU share each batch where they can, see `sharing`."""
        alone = self.world == 1 and not self.options.compile
        return sharing(denoiser) if alone else nullcontext()

    def shares(self, num: int) -> list[range]:
        """The samples of a batch of ``num`` that this process takes, in the parts that gradients are accumulated over.

        Parts differ by at most one sample.
        """
        parts = self.world * self.accumulation
        bounds = [num * part // parts for part in range(parts + 1)]
        mine = range(self.rank * self.accumulation, (self.rank + 1) * self.accumulation)
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
        losses = None if self.world > 1 else backward(loss, inputs, weight, self.computing)
        if losses is not None:
            return losses
        with loss.no_sync() if isinstance(loss, DistributedDataParallel) and not last else nullcontext():
            with self.busy(), self.computing():
                losses = loss(*inputs)
            self.scaler.scale((losses * weight).sum() * self.world).backward()
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
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def agree(self, seconds: float, *flags: bool) -> tuple[float, list[bool]]:
        """The first process' clock, and of each flag whether any process raises it, on all processes."""
        if self.hosts is None:
            return seconds, list(flags)
        mine = [seconds if self.first else 0.0, *map(float, flags)]
        shared = torch.tensor(mine + [0.0] * self.world, dtype=torch.float64)
        shared[len(mine) + self.rank] = self._busy
        dist.all_reduce(shared, group=self.hosts)
        self._busy_of_all, self._busy = self._busy_of_all + shared[len(mine) :].numpy(), 0.0
        return shared[0].item(), [bool(flag > 0) for flag in shared[1 : len(mine)]]

    def largest(self, value: int) -> int:
        """Of the values of all processes, on all of them."""
        shared = torch.tensor(value)
        if self.hosts is not None:
            dist.all_reduce(shared, dist.ReduceOp.MAX, group=self.hosts)
        return int(shared)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Around what a process does in a step before it needs the others: those that take longer hold all up."""
        began = time.monotonic()
        yield
        self._busy += time.monotonic() - began

    def lagging(self) -> str:
        """Which process has held up the others since this was asked last, as a sentence; empty if none has."""
        busy, self._busy_of_all = self._busy_of_all, np.zeros(self.world)
        slowest, usual = int(busy.argmax()), float(np.median(busy))
        if busy[slowest] < _LAGGING * usual or busy[slowest] - usual < _LAGGING_SECONDS:
            return ""
        return f"process {slowest} takes {busy[slowest] / usual:.1f} times as long as the others, which wait for it"

    def check_same_step(self, step: int) -> None:
        """Refuse to continue where the processes have found different checkpoints.

        Raises:
            InputError: in all of them; that the run folder is not one and the same.
        """
        if self.hosts is None:
            return
        bounds = torch.tensor([step, -step])
        dist.all_reduce(bounds, dist.ReduceOp.MIN, group=self.hosts)
        least, most = int(bounds[0]), -int(bounds[1])
        if least != most:
            raise InputError(
                f"some processes would continue after step {least:,} and others after step {most:,}: the run folder "
                "must be one and the same on all machines, on a disk that they share"
            )

    def catch_up(self) -> None:
        """Return when the device has done all that it was asked to."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def wait(self) -> None:
        """For all processes to come here."""
        if self.hosts is not None:
            dist.barrier(group=self.hosts)

    def wait_for_looks(self) -> None:
        """For the first process, which alone looks at what training has come to, where that takes longer than a step.

        One that is gone is noticed at once here too; one that hangs is not given up for days.
        """
        if self._patient is not None:
            dist.barrier(group=self._patient)

    def disconnect_at_exit(self) -> None:
        """After a `wait`, when nothing is on its way: have the connections closed when the process ends.

        Left to the end of the interpreter, their threads now and then abort it.
        """
        if self.hosts is not None:
            atexit.register(_disconnect)

    def of_first(self, value: Any) -> Any:
        """What this is in the first process."""
        if self.hosts is None:
            return value
        shared = [value]
        dist.broadcast_object_list(shared, src=0, group=self.hosts)
        return shared[0]

    def _mesh(self) -> DeviceMesh:
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(self.device.type, (self.world,))


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


def _disconnect() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _group_of_hosts(patience: timedelta | None = None) -> dist.ProcessGroup:
    """Of all processes, past their devices."""
    return dist.new_group(backend="gloo", timeout=patience or GIVEN_UP_AFTER)  # pyright: ignore[reportReturnType]


def device_of_process(name: str, world: int) -> torch.device:
    """`choose_device` for one of several processes, which take a GPU of the machine each."""
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
