"""Distributed evaluation: each rank computes some of the samples or features, and all ranks get all of them.

The results are the same, and in the same order, for any number of ranks, and so are the metrics.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from patch_diffusion.devices import device_of_process
from patch_diffusion.errors import InputError
from patch_diffusion.processes import cores, explain_lost_peer

T = TypeVar("T")

# Other ranks wait while rank 0 computes a reference, which can take long. A rank that dies is noticed at once.
_LONGEST = timedelta(hours=24)

_group: ContextVar[dist.ProcessGroup | None] = ContextVar("group", default=None)


@contextmanager
def distributed_evaluation(device: str = "auto") -> Iterator[str]:
    """Share the work of evaluation among all ranks of a launcher in the with block; all ranks must run the same code.

    Args:
        device: see `choose_device`; for "auto" and "cuda" each rank of a machine takes a GPU of its own.

    Yields:
        The device of this rank; in a single process ``device``, and then nothing else is done.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield device
        return
    chosen = device_of_process(device, world)
    if chosen.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", world))))
    with explain_lost_peer():
        dist.init_process_group("gloo", timeout=_LONGEST)
        token = _group.set(dist.group.WORLD)
        try:
            yield str(chosen)
        finally:
            _group.reset(token)
            dist.destroy_process_group()


def shared(make: Callable[[int], T], num: int) -> Iterator[T]:
    """Yield ``make(0)`` to ``make(num - 1)`` in order on every rank; each is computed on one rank and sent to all.

    Raises:
        InputError: on all ranks, the error that one rank raised.
    """
    group = _group.get()
    if group is None:
        yield from map(make, range(num))
        return
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    for start in range(0, num, world):
        mine: T | InputError | None = None
        try:
            mine = make(start + rank) if start + rank < num else None
        except InputError as error:
            mine = error
        found: list[Any] = [None] * world
        dist.all_gather_object(found, mine, group=group)
        for each in found[: num - start]:
            if isinstance(each, InputError):
                raise each
            yield each


def first_alone(make: Callable[[], T]) -> T:
    """Return ``make()``, called on rank 0 before the other ranks, so that they can find its result in a cache."""
    result: list[T] = []
    list(shared(lambda _: result.append(make()), 1))  # sends nothing but an error
    return result[0] if result else make()
