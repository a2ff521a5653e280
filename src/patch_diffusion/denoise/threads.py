"""CPU threads that share a batch.

torch divides every operation among its threads, which meet after each, thousands of times a step; where another process
takes a core for a moment, all of them wait, each time. Here each thread takes some of the samples all the way through
the network by itself, and they meet once. Where there are fewer samples than threads, as of large images, torch divides
each sample's operations among the threads that are left for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.objective import Batch

Result = TypeVar("Result")


class Workers:
    """A pool of threads, in each of which torch computes alone, unless there is less to do than there are threads.

    Args:
        num: number of threads.
    """

    def __init__(self, num: int) -> None:
        self.num, self.owner = num, threading.get_ident()
        self._pool = ThreadPoolExecutor(num, "worker", initializer=torch.set_num_threads, initargs=(1,))

    def map_rows(self, function: Callable[[slice], Result], num: int) -> list[Result]:
        """Call a function for each thread's share of ``num`` samples, in several threads at a time; in their order."""
        parts = min(self.num, num)
        bounds = [num * part // parts for part in range(parts + 1)]

        def some(first: int, last: int) -> Result:
            with _threads_of_torch(self.num // parts):
                return function(slice(first, last))

        return self.map([partial(some, first, last) for first, last in pairwise(bounds)])

    def map(self, tasks: Sequence[Callable[[], Result]]) -> list[Result]:
        """Call functions in the threads, and return their results when all are done."""
        futures = [self._pool.submit(task) for task in tasks]
        wait(futures)  # for all, also where one has failed
        return [future.result() for future in futures]

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


_current: Workers | None = None


@contextmanager
def sharing(model: Denoiser) -> Iterator[None]:
    """Let `forward` and `backward` share each batch, inside the block, among as many threads as torch computes with.

    Nothing changes for a model that is not on a CPU or that threads may not share, see `can_share`, nor inside another
    such block.
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
    """Return True if threads of a CPU may run a model at the same time, with results that repeat.

    The networks of this package keep nothing while they compute; of others that is not known. Dropout draws from
    torch's one generator, which threads would reach in any order.
    """
    if model.device.type != "cpu" or not hasattr(model.network, "settings"):
        return False
    return not any(isinstance(module, nn.Dropout) and module.p > 0 and module.training for module in model.modules())


def forward(model: Denoiser, noisy: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
    """Denoise a batch, see `Denoiser.forward`; inside `sharing`, and without gradients, by several threads."""
    num = len(noisy)
    if _current is None or num == 1 or torch.is_grad_enabled() or not can_share(model):
        with _all_threads():
            return model(noisy, sigma, conditions)
    inference = torch.is_inference_mode_enabled()  # each thread has a mode of its own
    sigma, conditions = sigma.expand(num), conditions.spread(noisy)

    def some(rows: slice) -> Tensor:
        with torch.inference_mode(inference), torch.no_grad():
            return model(noisy[rows], sigma[rows], conditions.select(rows))

    return torch.cat(_current.map_rows(some, num))


class Shared:
    """A denoiser whose batches are shared by the threads of `sharing`, to be called like the denoiser itself."""

    def __init__(self, model: Denoiser) -> None:
        self._model = model

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Return lambda(sigma), see `Denoiser.loss_weight`."""
        return self._model.loss_weight(sigma)

    def __call__(
        self, noisy: Tensor, sigma: Tensor, coords: Tensor | Conditions, labels: Tensor | None = None
    ) -> Tensor:
        """Return the denoised images (n, c, *shape)."""
        conditions = coords if isinstance(coords, Conditions) else Conditions(coords, labels)
        return forward(self._model, noisy, sigma, conditions)


def backward(
    objective: nn.Module,
    batch: Batch,
    weight: float | Tensor,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor | None:
    """Add the gradients of a weighted sum of losses to those of the parameters, inside `sharing`.

    Shares are summed in the order of the samples, whichever thread is done first, so that runs repeat.

    Args:
        objective: maps a batch to the losses of its samples, each without regard to the others.
        batch: n samples.
        weight: of each loss in the sum, of all one number or ``(n,)``.
        autocast: context in which each thread computes losses, such as a number format.

    Returns:
        ``(n,)``, the losses, without a graph; None outside of `sharing`, where nothing is done.
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
    """Let torch use all threads for each operation inside the block, unless this thread is one of those that share."""
    if _current is None or threading.get_ident() != _current.owner:
        yield
        return
    with _threads_of_torch(_current.num):
        yield


@contextmanager
def _threads_of_torch(num: int) -> Iterator[None]:
    """Set the number of threads that torch uses for this thread's operations inside the block."""
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
    """Return the number of threads that share the work: 1 outside of `sharing`."""
    return 1 if _current is None else _current.num


def map(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """Call functions that do not depend on each other and want no gradients, in the threads where there are any."""
    if _current is None:
        return [task() for task in tasks]
    return _current.map([torch.no_grad()(task) for task in tasks])


def _add(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    """Add gradients to those that the parameters have, if they have any."""
    sums, terms = [], []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            # In memory as the weights are, which fused optimizers take for granted.
            alike = gradient.stride() == parameter.stride()
            parameter.grad = gradient if alike else torch.empty_like(parameter).copy_(gradient)
        else:
            sums.append(parameter.grad)
            terms.append(gradient)
    if sums:
        torch._foreach_add_(sums, terms)  # pyright: ignore[reportPrivateImportUsage]
