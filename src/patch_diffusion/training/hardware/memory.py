"""What training takes of the device's memory, and how many images at a time fit into it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from patch_diffusion.denoise.objective import denoising_loss
from patch_diffusion.errors import InputError
from patch_diffusion.patches.coords import coordinate_grid
from patch_diffusion.patches.schedule import PatchSize

if TYPE_CHECKING:
    from patch_diffusion.training.trainer import Trainer

WORKSPACE = 1.4
"""What a step takes at its peak, with the gradients of activations and the buffers of convolutions, as a multiple of
what is kept for the backward pass: 1.2 to 1.5 for U-Nets and transformers on a CPU."""

COPIES_OF_WEIGHTS = 5
"""The weights, their gradients, the average that is sampled from, and two moments; other averages come on top."""

_USED = 0.8  # of what there is, or was found to fit: memory is in pieces, and samples are made, too


def memory_of(device: torch.device) -> int | None:
    """Bytes of memory that a device has in all, where that is known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def memory_of_weights(network: nn.Module, averages: int = 0) -> int:
    """Bytes that the weights take in training, with gradients, moments and averages, of which there may be more."""
    return (COPIES_OF_WEIGHTS + averages) * 4 * sum(parameter.numel() for parameter in network.parameters())


def kept_for_backward(trainer: Trainer, shape: tuple[int, int]) -> int:
    """Bytes of activations that an image of this shape leaves for the backward pass."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in trainer.denoiser.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = _loss(trainer, shape, 1)
    del loss
    return sum(kept.values())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error says, of any device."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def parts_that_fit(trainer: Trainer) -> int:
    """The fewest parts that a process' share of a batch can be computed in, see ``engine.accumulation``.

    On a GPU it is tried out, on a CPU reckoned from the activations of one image.

    Raises:
        InputError: not even a single image fits.
    """
    parts = 1
    for size in _sizes(trainer):
        share = -(-size.num_images(trainer.batch) // trainer.engine.group.world)
        most = most_at_a_time(trainer, size, share)
        if most == 0:
            raise InputError(_nothing_fits(size))
        parts = max(parts, -(-share // most))
    return trainer.engine.group.largest(min(parts, max(trainer.batch // trainer.engine.group.world, 1)))


@contextmanager
def memory_told(trainer: Trainer) -> Iterator[None]:
    """Around a step: where the memory does not suffice, the user is told what would fit."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error)
    else:
        return
    raise InputError(advice_on_memory(trainer, reason))


def advice_on_memory(trainer: Trainer, reason: str) -> str:
    """After a step has run out of memory: a sentence that says what would fit."""
    if trainer.engine.options.shard:  # to try what fits would take all processes, and the others know of nothing
        return f"out of memory at a batch of {trainer.batch}: give a higher --engine.accumulation, or more processes"
    fitting = {size: most_at_a_time(trainer, size, size.num_images(trainer.batch)) for size in _sizes(trainer)}
    for size, most in fitting.items():
        if most == 0:
            return _nothing_fits(size)
    batch = math.floor(min(trainer.engine.group.world * most / size.growth for size, most in fitting.items()))
    if batch >= trainer.batch:
        return (
            f"out of memory ({' '.join(reason.split())[:120]}), though a batch of {trainer.batch} fits as such: does "
            "another process take the memory?"
        )
    return (
        f"out of memory at a batch of {trainer.batch}: the largest that fits is {batch}; give "
        f"--engine.accumulation auto, which computes the {trainer.batch} in parts, or --batch {batch} --allow batch"
    )


def most_at_a_time(trainer: Trainer, size: PatchSize, wanted: int) -> int:
    """How many images of a size, up to ``wanted``, a forward and a backward pass can take at a time."""
    device = trainer.denoiser.device
    if device.type == "cuda" and not trainer.engine.options.shard:
        found = _largest(lambda num: _passes(trainer, size.shape, num), wanted)
        return found if found == wanted else max(math.floor(_USED * found), min(found, 1))
    memory = memory_of(device)
    if memory is None:
        return wanted
    weights = memory_of_weights(trainer.network, len(trainer.power_averages))
    room = _USED * memory - (weights / trainer.engine.group.world if trainer.engine.options.shard else weights)
    return min(wanted, max(int(room / (WORKSPACE * kept_for_backward(trainer, size.shape))), 0))


def _largest(fits: Callable[[int], bool], wanted: int) -> int:
    """The largest number up to ``wanted`` that fits, by bisection; 0 where none does."""
    if fits(wanted):
        return wanted
    low, high = 0, wanted
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _passes(trainer: Trainer, shape: tuple[int, int], num: int) -> bool:
    """Try it, with the memory taken that the moments will need."""
    parameters = [parameter for parameter in trainer.network.parameters() if parameter.requires_grad]
    try:
        moments = [torch.empty_like(parameter) for parameter in parameters for _ in range(2)]
        # Not backward(): nothing is to be left in the gradients, nor exchanged with other processes.
        torch.autograd.grad(_loss(trainer, shape, num), parameters, allow_unused=True)
        del moments
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        if trainer.denoiser.device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def _loss(trainer: Trainer, shape: tuple[int, int], num: int) -> Tensor:
    """The loss of some images of nothing."""
    denoiser, device = trainer.denoiser, trainer.denoiser.device
    clean = torch.zeros(num, trainer.images.channels, *shape, device=device)
    labels = torch.zeros(num, dtype=torch.long, device=device) if denoiser.num_classes else None
    altered = torch.zeros(num, denoiser.augment_channels, device=device) if denoiser.augment_channels else None
    coords = coordinate_grid(*shape, device=device)
    sigma = torch.ones(num, device=device)
    with trainer.engine.computing():
        return denoising_loss(denoiser, clean, coords, sigma, labels, augment=altered, noise=clean).sum()


def _sizes(trainer: Trainer) -> list[PatchSize]:
    stride = trainer.denoiser.stride
    return [size for bucket in trainer.images.buckets for size in trainer.schedule.sizes_for(bucket.resolution, stride)]


def _nothing_fits(size: PatchSize) -> str:
    return (
        f"the memory does not take a single image of {size}: choose a smaller --network.width, or let several "
        "processes share the weights"
    )
