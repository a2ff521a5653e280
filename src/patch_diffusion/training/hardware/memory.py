"""The memory that training takes of a device, and how many images at a time fit into it."""

from __future__ import annotations

import gc
import math
import traceback
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.objective import Batch
from patch_diffusion.devices import memory_of
from patch_diffusion.errors import InputError, is_out_of_memory
from patch_diffusion.patches.coords import coordinate_grid
from patch_diffusion.patches.schedule import PatchSize, Shape

WORKSPACE = 1.4
"""Peak memory of a step, with buffers of convolutions and what the allocator keeps, as a multiple of that of its
tensors: 1.2 to 1.5 for U-Nets and transformers on a CPU, and about 1.0 where tensors have more than 32 MB."""

COPIES_OF_WEIGHTS = 5
"""The weights, their gradients, the average that is sampled from, and two moments; other averages come on top."""

_USED = 0.8  # share that is used of what there is or fits: memory is fragmented, and samples need some, too


@dataclass(frozen=True)
class Demand:
    """The facts that decide how much memory a training takes.

    Args:
        network: the network, in training mode.
        sizes: the patch sizes of the steps, for images of each resolution.
        batch: whole images in a step, of all ranks.
        world: number of ranks.
        sharded: True if the ranks hold shards of the model.
        averages: number of power-function averages that are kept in addition to the usual average.
        loss: ``loss(shape, num)``, which computes the summed training loss of ``num`` blank images.
        device: the device of the training.
    """

    network: nn.Module
    sizes: Sequence[PatchSize]
    batch: int
    world: int
    sharded: bool
    averages: int
    loss: Callable[[Shape, int], Tensor]
    device: torch.device


def memory_of_weights(network: nn.Module, averages: int = 0) -> int:
    """Return the bytes of a network's weights in training, with gradients, moments and ``averages`` more averages."""
    return (COPIES_OF_WEIGHTS + averages) * 4 * sum(parameter.numel() for parameter in network.parameters())


def memory_of_image(demand: Demand, shape: Shape) -> int:
    """Return the bytes of tensors that one image of this shape adds to a step, at most at a time.

    That is what is kept for the backward pass; or where blocks are computed again, what is kept of all and the results
    inside of one block. Weights and their gradients do not count.
    """
    parameters = [parameter for parameter in demand.network.parameters() if parameter.requires_grad]
    alive = _Alive(demand.network.parameters())
    # Each gradient no longer counts when it is done.
    hooks = [parameter.register_hook(alive.leave_out) for parameter in parameters]
    try:
        with alive:
            torch.autograd.grad(demand.loss(shape, 1), parameters, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    return alive.most


def memory_of_whole_image(demand: Demand) -> int:
    """Return the bytes that one whole image adds to a step, or the patches in its place, of the size of most pixels."""
    largest = max(demand.sizes, key=lambda size: size.growth * math.prod(size.shape))
    return round(largest.growth * memory_of_image(demand, largest.shape))


def most_images(weights: float, image: float, memory: int | None) -> float:
    """Return how many whole images at a time the memory takes, estimated; infinity if its size is not known.

    Args:
        weights: bytes of the weights in training, see `memory_of_weights`.
        image: bytes that one image adds, see `memory_of_whole_image`.
        memory: bytes of the device.
    """
    return math.inf if memory is None else max((_USED * memory - weights) // (WORKSPACE * image), 0)


def blank_batch(denoiser: Denoiser, channels: int, shape: Shape, num: int, device: torch.device) -> Batch:
    """Return ``num`` blank images with all conditions that a denoiser takes, to measure memory."""
    clean = torch.zeros(num, channels, *shape, device=device)
    labels = torch.zeros(num, dtype=torch.long, device=device) if denoiser.num_classes else None
    altered = torch.zeros(num, denoiser.augment_channels, device=device) if denoiser.augment_channels else None
    told = torch.zeros(num, denoiser.attribute_channels, device=device) if denoiser.attribute_channels else None
    conditions = Conditions(coordinate_grid(*shape, device=device), labels, altered, attributes=told)
    return Batch(clean, torch.ones(num, device=device), clean, conditions)


class _Alive(TorchDispatchMode):
    """Counts the bytes of what operations make and is still there, at most at a time, to 1 %."""

    def __init__(self, left_out: Iterable[Tensor]) -> None:
        super().__init__()
        self.most = 0
        self._total = 0  # with what is gone since it was last looked at
        self._sizes: dict[int, tuple[StorageWeakRef, int]] = {}
        for tensor in left_out:
            self.leave_out(tensor)

    def leave_out(self, tensor: Tensor) -> None:
        """Count a tensor no longer, or never."""
        storage = StorageWeakRef(tensor.untyped_storage())
        self._total -= self._sizes.get(storage.cdata, (storage, 0))[1]
        self._sizes[storage.cdata] = storage, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = StorageWeakRef(tensor.untyped_storage())
                if storage.cdata not in self._sizes:
                    self._sizes[storage.cdata] = storage, tensor.untyped_storage().nbytes()
                    self._total += tensor.untyped_storage().nbytes()
        if self._total > 1.01 * self.most:  # not at each operation, as looking at all takes long
            self._sizes = {place: found for place, found in self._sizes.items() if not found[0].expired()}
            self._total = sum(size for _, size in self._sizes.values())
            self.most = max(self.most, self._total)
        return made


def microbatches_that_fit(demand: Demand) -> int:
    """Return the fewest microbatches that a rank's share of a batch can be computed in, see ``engine.accumulation``.

    On a GPU it is found by trial, on a CPU estimated from the activations of one image.

    Raises:
        InputError: not even a single image fits.
    """
    parts = 1
    for size in demand.sizes:
        share = -(-size.num_images(demand.batch) // demand.world)
        most = most_at_a_time(demand, size, share)
        if most == 0:
            raise InputError(_nothing_fits(demand, size))
        parts = max(parts, -(-share // most))
    return min(parts, max(demand.batch // demand.world, 1))


@contextmanager
def explain_out_of_memory(demand: Callable[[], Demand]) -> Iterator[None]:
    """Replace an out-of-memory error in the with block by an InputError that says what batch would fit."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error)
        let_go(error)
        gc.collect()  # what the failed step left in circles
    else:
        return
    needed = demand()
    needed.network.zero_grad()
    _empty_cache(needed.device)
    raise InputError(advice_on_memory(needed, reason))


def let_go(error: BaseException) -> None:
    """Free what the frames of an error hold, such as the tensors of a failed step, and of errors that led to it."""
    waiting: list[BaseException | None] = [error]
    known: set[int] = set()
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in known:
            known.add(id(each))
            traceback.clear_frames(each.__traceback__)
            waiting += [each.__cause__, each.__context__]


def advice_on_memory(demand: Demand, reason: str) -> str:
    """Return the error message that says what batch would fit, after a step has run out of memory."""
    if demand.sharded:  # to try what fits would take all ranks, and the others know of nothing
        return (
            f"out of memory at a batch of {demand.batch}: give a higher --engine.accumulation, {_recompute(demand)}or "
            "more processes"
        )
    fitting = {size: most_at_a_time(demand, size, size.num_images(demand.batch)) for size in demand.sizes}
    for size, most in fitting.items():
        if most == 0:
            return _nothing_fits(demand, size)
    batch = math.floor(min(demand.world * most / size.growth for size, most in fitting.items()))
    if batch >= demand.batch:
        return (
            f"out of memory ({' '.join(reason.split())[:120]}), though a batch of {demand.batch} fits as such: does "
            "another process take the memory?"
        )
    return (
        f"out of memory at a batch of {demand.batch}: the largest that fits is {batch}; give "
        f"--engine.accumulation auto, which computes the {demand.batch} in parts, {_recompute(demand)}or --batch "
        f"{batch} --allow batch"
    )


def most_at_a_time(demand: Demand, size: PatchSize, wanted: int) -> int:
    """Return how many images of a size, up to ``wanted``, a forward and a backward pass can take at a time."""
    device = demand.device
    if device.type == "cuda" and not demand.sharded:
        found = _largest(lambda num: _passes(demand, size.shape, num), wanted)
        return found if found == wanted else max(math.floor(_USED * found), min(found, 1))
    memory = memory_of(device)
    if memory is None:
        return wanted
    weights = memory_of_weights(demand.network, demand.averages) / (demand.world if demand.sharded else 1)
    return min(wanted, int(most_images(weights, memory_of_image(demand, size.shape), memory)))


def _largest(fits: Callable[[int], bool], wanted: int) -> int:
    """Return the largest number up to ``wanted`` for which ``fits`` is True, by bisection; 0 if there is none."""
    if fits(wanted):
        return wanted
    return bisect_left(range(1, wanted), True, key=lambda num: not fits(num))


def _passes(demand: Demand, shape: Shape, num: int) -> bool:
    """Return True if a forward and a backward pass fit in memory, in addition to the moments of the optimizer."""
    parameters = [parameter for parameter in demand.network.parameters() if parameter.requires_grad]
    try:
        _pass(demand, shape, num, parameters)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        let_go(error)
        gc.collect(1)  # circles of this pass, which are young; all objects take a second in a large process
        return False
    finally:
        _empty_cache(demand.device)
    return True


def _pass(demand: Demand, shape: Shape, num: int, parameters: Sequence[nn.Parameter]) -> None:
    _moments = [torch.empty_like(parameter) for parameter in parameters for _ in range(2)]
    # Not backward(), which would leave gradients behind and exchange them with other ranks.
    torch.autograd.grad(demand.loss(shape, num), parameters, allow_unused=True)


def _empty_cache(device: torch.device) -> None:
    """Give the memory of a GPU that no tensor takes back, which is else kept in pieces of the sizes once needed."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def _nothing_fits(demand: Demand, size: PatchSize) -> str:
    return (
        f"the memory does not take a single image of {size}: give {_recompute(demand)}a smaller --network.width, or "
        "let several processes share the weights"
    )


def _recompute(demand: Demand) -> str:
    """Return words of advice for a network that can compute blocks again and does not; an empty text for another."""
    can = getattr(demand.network, "recompute", None) is False
    return "--engine.recompute, which keeps less for the backward pass, " if can else ""
