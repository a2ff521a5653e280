"""The ranks (processes) of a run, and the small values that they exchange between hosts, without the devices."""

from __future__ import annotations

import atexit
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from patch_diffusion.errors import InputError
from patch_diffusion.processes import GIVEN_UP_AFTER

_LONGEST_EVALUATION = timedelta(days=3)

# How much longer a process takes than the median one, as a factor and in seconds between two lines of the log, before
# the user is told.
_LAGGING, _LAGGING_SECONDS = 1.5, 2.0


class Group:
    """This process as one rank among those of a run, which may have one rank only.

    Args:
        rank: the number of this process.
        world: the number of processes.
        device: the device of this process.
        sharing: True if the ranks hold shards of one model, False if each holds it whole.

    Attributes:
        rank, world, sharing: as given.
        hosts, writers: process groups of all ranks for exchange between hosts, during training and while a checkpoint
            is written behind it; None where there is nothing to exchange.
    """

    def __init__(self, rank: int, world: int, device: torch.device, *, sharing: bool = False) -> None:
        self.rank = rank
        self.world = world
        self.sharing = sharing
        self.hosts: dist.ProcessGroup | None = None
        self.writers: dist.ProcessGroup | None = None
        self._patient: dist.ProcessGroup | None = None
        self._busy, self._busy_of_all = 0.0, np.zeros(world)
        if world == 1:
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=GIVEN_UP_AFTER)
        # What the hosts tell each other must not wait for the devices.
        self.hosts = _host_group()
        if sharing:
            self.writers = _host_group()
        else:
            self._patient = _host_group(_LONGEST_EVALUATION)

    @property
    def is_main(self) -> bool:
        """True if this is rank 0, which writes files and tells the user."""
        return self.rank == 0

    @property
    def samples_and_saves(self) -> bool:
        """True if this rank samples and saves: rank 0, or every rank when the model is sharded.

        Ranks other than 0 then do the same and write nothing.
        """
        return self.is_main or self.sharing

    def sync_clock_and_flags(self, clock: Sequence[float], *flags: bool) -> tuple[list[float], list[bool]]:
        """Return on all ranks: rank 0's ``clock``, in seconds, and a bool for each flag, True if any rank sets it."""
        if self.hosts is None:
            return list(clock), list(flags)
        num = len(clock)
        mine = [*(clock if self.is_main else [0.0] * num), *map(float, flags)]
        shared = torch.tensor(mine + [0.0] * self.world, dtype=torch.float64)
        shared[len(mine) + self.rank] = self._busy
        dist.all_reduce(shared, group=self.hosts)
        self._busy_of_all, self._busy = self._busy_of_all + shared[len(mine) :].numpy(), 0.0
        return shared[:num].tolist(), [bool(flag > 0) for flag in shared[num : len(mine)]]

    def max(self, value: int) -> int:
        """Return the largest value of all ranks, on all of them."""
        shared = torch.tensor(value)
        if self.hosts is not None:
            dist.all_reduce(shared, dist.ReduceOp.MAX, group=self.hosts)
        return int(shared)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Measure the time inside the with block, in which this rank works without the others, to find slow ranks."""
        began = time.monotonic()
        yield
        self._busy += time.monotonic() - began

    def lagging(self) -> str:
        """Return a sentence that names a rank that has held up the others since the last call; empty if none has."""
        busy, self._busy_of_all = self._busy_of_all, np.zeros(self.world)
        slowest, usual = int(busy.argmax()), float(np.median(busy))
        if busy[slowest] < _LAGGING * usual or busy[slowest] - usual < _LAGGING_SECONDS:
            return ""
        return f"process {slowest} takes {busy[slowest] / usual:.1f} times as long as the others, which wait for it"

    def check_same_step(self, step: int) -> None:
        """Raise InputError, on all ranks, if they have found different checkpoints to continue from."""
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

    def barrier(self) -> None:
        """Wait until all ranks have reached this call."""
        if self.hosts is not None:
            dist.barrier(group=self.hosts)

    def barrier_after_evaluation(self) -> None:
        """Wait for rank 0, which alone evaluates samples and held-out images, where that takes longer than a step.

        A rank that is gone is noticed at once here too; one that hangs is not given up for days.
        """
        if self._patient is not None:
            dist.barrier(group=self._patient)

    def disconnect_at_exit(self) -> None:
        """Register the closing of the ranks' connections at the end of the process; to be called after a `barrier`.

        Left to the end of the interpreter, their threads now and then abort it.
        """
        if self.hosts is not None:
            atexit.register(_disconnect)

    def broadcast(self, value: Any) -> Any:
        """Broadcast rank 0's value to all ranks, and return it."""
        if self.hosts is None:
            return value
        shared = [value]
        dist.broadcast_object_list(shared, src=0, group=self.hosts)
        return shared[0]


def _disconnect() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _host_group(patience: timedelta | None = None) -> dist.ProcessGroup:
    """Make a process group of all ranks on their hosts."""
    return dist.new_group(backend="gloo", timeout=patience or GIVEN_UP_AFTER)  # pyright: ignore[reportReturnType]
