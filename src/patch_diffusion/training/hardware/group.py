"""The processes of a run, and what they tell each other past their devices."""

from __future__ import annotations

import atexit
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from patch_diffusion.errors import InputError
from patch_diffusion.processes import GIVEN_UP_AFTER

_LONGEST_LOOK = timedelta(days=3)

# How much longer a process takes than the middle one, as a factor and in seconds between two lines of the log, before
# the user is told.
_LAGGING, _LAGGING_SECONDS = 1.5, 2.0


class Group:
    """One process among those of a run, which may be one alone.

    Args:
        rank: the number of this process.
        world: how many there are.
        device: where this one computes.
        sharing: whether they share one model, or hold it whole each.

    Attributes:
        rank, world, sharing: as given.
        hosts, writers: groups of all processes in which hosts talk past the devices, during training and while a
            checkpoint is written behind it; None where they have nothing to say.
    """

    def __init__(self, rank: int, world: int, device: torch.device, *, sharing: bool = False) -> None:
        self.rank, self.world, self.sharing = rank, world, sharing
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
        self.hosts = _of_hosts()
        if sharing:
            self.writers = _of_hosts()
        else:
            self._patient = _of_hosts(_LONGEST_LOOK)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    @property
    def takes_part(self) -> bool:
        """Whether this process is needed for pictures and checkpoints: the first, and where they share the model all.

        Those that are not the first then do the same and write nothing.
        """
        return self.first or self.sharing

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


def _disconnect() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _of_hosts(patience: timedelta | None = None) -> dist.ProcessGroup:
    """Of all processes, past their devices."""
    return dist.new_group(backend="gloo", timeout=patience or GIVEN_UP_AFTER)  # pyright: ignore[reportReturnType]
