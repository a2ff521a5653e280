"""CPU threads that share the samples of a batch.

torch divides every operation among its threads and synchronizes them after each, thousands of times a step; if another
process takes a core for a moment, all of them wait, each time. Here each thread takes some of the samples all the way
through the network, and the threads are synchronized once. If there are fewer samples than threads, as with large
images, torch divides each sample's operations among an equal share of the threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Annotated as Float, Any, TypeVar

import torch
from torch import Tensor, nn

from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.objective import Batch

Result = TypeVar("Result")


class Workers:
    """A pool of threads. In each, torch computes with one thread, or with several if samples are few.

    Args:
        num: number of threads.
    """

    def __init__(self, num: int) -> None:
        self.num = num
        self.owner: int = threading.get_ident()
        self._pool = ThreadPoolExecutor(num, "worker", initializer=torch.set_num_threads, initargs=(1,))

    def map_rows(self, function: Callable[[slice], Result], num: int) -> list[Result]:
        """Call a function on each thread's slice of ``num`` samples, in parallel; return a list of results in order."""
        parts = min(self.num, num)
        bounds = [num * part // parts for part in range(parts + 1)]

        def some(first: int, last: int) -> Result:
            with _threads_of_torch(self.num // parts):
                return function(slice(first, last))

        return self.map([partial(some, first, last) for first, last in pairwise(bounds)])

    def map(self, tasks: Sequence[Callable[[], Result]]) -> list[Result]:
        """Call functions in the threads, and return a list of their results, in order, when all are done."""
        futures = [self._pool.submit(task) for task in tasks]
        wait(futures)  # for all, even if one has failed
        return [future.result() for future in futures]

    def close(self) -> None:
        """End the threads of the pool."""
        self._pool.shutdown()


_current: Workers | None = None


@contextmanager
def sharing(model: Denoiser) -> Iterator[None]:
    """Let `Shared` and `backward` split each batch over as many threads as torch is set to use, in the with block.

    It has no effect for a model that is not on a CPU or that threads may not share, see `can_share`, or if it is nested
    in another with block of `sharing`.
    """
    global _current
    num = torch.get_num_threads()
    if _current is not None or num == 1 or not can_share(model):
        yield
        return
    _current = Workers(num)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num)
        _current.close()
        _current = None


def can_share(model: Denoiser) -> bool:
    """True if several CPU threads may run a model at the same time, with reproducible results.

    The networks of this package keep no state while they compute; others might. Dropout draws from torch's global
    generator, which the threads would use in arbitrary order.
    """
    if model.device.type != "cpu" or not hasattr(model.network, "settings"):
        return False
    return not any(isinstance(module, nn.Dropout) and module.p > 0 and module.training for module in model.modules())


class Shared:
    """A wrapper that is called like its denoiser; threads share a batch inside `sharing` if gradients are off."""

    def __init__(self, model: Denoiser) -> None:
        self._model = model

    def loss_weight(self, sigma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return lambda(sigma), see `Denoiser.loss_weight`."""
        return self._model.loss_weight(sigma)

    def __call__(
        self,
        noisy: Float[Tensor, "n c *shape"],
        sigma: Float[Tensor, "..."],
        coords: Tensor | Conditions,
        labels: Tensor | None = None,
    ) -> Float[Tensor, "n c *shape"]:
        """Return the denoised images, see `Denoiser.forward`."""
        conditions = coords if isinstance(coords, Conditions) else Conditions(coords, labels)
        num, model = len(noisy), self._model
        if _current is None or num == 1 or torch.is_grad_enabled() or not can_share(model):
            with _all_threads():
                return model(noisy, sigma, conditions)
        # Each thread has modes of its own.
        inference, half = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        type = torch.get_autocast_dtype("cpu")
        sigma, conditions = sigma.expand(num), conditions.spread(noisy)

        def some(rows: slice) -> Tensor:
            with torch.inference_mode(inference), torch.no_grad(), torch.autocast("cpu", type, half):
                return model(noisy[rows], sigma[rows], conditions.select(rows))

        return torch.cat(_current.map_rows(some, num))


def backward(
    objective: nn.Module,
    batch: Batch,
    weight: float | Float[Tensor, ""] | Float[Tensor, "n"],
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Float[Tensor, "n"] | None:
    """Add the gradients of a weighted sum of losses to the parameters' ``grad``, with the batch split over threads.

    The threads' gradients are summed in the order of the samples, whichever thread is done first, to be reproducible.

    Args:
        objective: a module that maps a batch to one loss per sample, each independent of the other samples.
        batch: n samples.
        weight: the weight of each loss in the sum, or one for all.
        autocast: makes the context manager in which each thread computes losses, such as `torch.autocast`.

    Returns:
        The losses, detached; None outside of `sharing`, where nothing is done.
    """
    if _current is None:
        return None
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    num = len(batch.clean)
    weights = torch.as_tensor(weight).expand(num)

    def some(rows: slice) -> tuple[Tensor, Sequence[Tensor | None]]:
        with autocast():
            losses = objective(batch.select(rows))
        return losses.detach(), torch.autograd.grad((weights[rows] * losses).sum(), parameters, allow_unused=True)

    results = _current.map_rows(some, num)
    for _, gradients in results:
        _add(parameters, gradients)
    return torch.cat([losses for losses, _ in results])


@contextmanager
def _all_threads() -> Iterator[None]:
    """Let torch use all threads for each operation inside the with block, unless this thread is one of the pool."""
    if _current is None or threading.get_ident() != _current.owner:
        yield
        return
    with _threads_of_torch(_current.num):
        yield


@contextmanager
def _threads_of_torch(num: int) -> Iterator[None]:
    """Set the number of threads that torch uses for this thread's operations inside the with block."""
    before = torch.get_num_threads()
    if num == before:
        yield
        return
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads() -> int:
    """Return the number of threads that share each batch: 1 outside of `sharing`."""
    return 1 if _current is None else _current.num


def map(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """Call independent functions without gradients, in parallel inside `sharing`; return a list of results in order."""
    if _current is None:
        return [task() for task in tasks]
    return _current.map([torch.no_grad()(task) for task in tasks])


def _add(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    """Add gradients to the ``grad`` of the parameters, or set it if it is None."""
    sums, terms = [], []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            # The gradient gets the memory layout of the weights, which fused optimizers rely on.
            alike = gradient.stride() == parameter.stride()
            parameter.grad = gradient if alike else torch.empty_like(parameter).copy_(gradient)
        else:
            sums.append(parameter.grad)
            terms.append(gradient)
    if sums:
        torch._foreach_add_(sums, terms)  # pyright: ignore[reportPrivateImportUsage]
