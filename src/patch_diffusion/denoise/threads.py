"""Threads of a CPU that share a batch.

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

from patch_diffusion.denoise.denoiser import Denoiser

Result = TypeVar("Result")


class Workers:
    """So many threads, in each of which torch computes alone, unless there is less to do than there are threads.

    Args:
        num: how many.
    """

    def __init__(self, num: int) -> None:
        self.num, self.owner = num, threading.get_ident()
        self._pool = ThreadPoolExecutor(num, "worker", initializer=torch.set_num_threads, initargs=(1,))

    def map(self, function: Callable[..., Result], inputs: Sequence[Tensor | None]) -> list[Result]:
        """What a function makes of each thread's share of the samples, in their order.

        Args:
            function: called in several threads at a time.
            inputs: its arguments: tensors of n rows, one of each sample, or None.
        """
        num = next(len(value) for value in inputs if value is not None)
        parts = min(self.num, num)
        bounds = [num * part // parts for part in range(parts + 1)]

        def some(first: int, last: int) -> Result:
            with _threads_of_torch(self.num // parts):
                return function(*(value if value is None else value[first:last] for value in inputs))

        return self.run([partial(some, first, last) for first, last in pairwise(bounds)])

    def run(self, tasks: Sequence[Callable[[], Result]]) -> list[Result]:
        """What each of some functions gives."""
        futures = [self._pool.submit(task) for task in tasks]
        wait(futures)  # for all, also where one has failed
        return [future.result() for future in futures]

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


_current: Workers | None = None


@contextmanager
def sharing(model: Denoiser) -> Iterator[None]:
    """Inside, `evaluate` and `backward` share each batch among as many threads as torch would compute with.

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
    """Whether threads of a CPU may run a model at the same time, with results that repeat.

    The networks of this package keep nothing while they compute; of others that is not known. Dropout draws from
    torch's one generator, which threads would reach in any order.
    """
    if model.device.type != "cpu" or not hasattr(model.network, "settings"):
        return False
    return not any(isinstance(module, nn.Dropout) and module.p > 0 and module.training for module in model.modules())


def evaluate(model: Denoiser, noisy: Tensor, sigma: Tensor, coords: Tensor, *conditions: Tensor | None) -> Tensor:
    """What the model gives, see `Denoiser.forward`; inside `sharing`, and without gradients, by several threads."""
    num = len(noisy)
    if _current is None or num == 1 or torch.is_grad_enabled() or not can_share(model):
        with _all_threads():
            return model(noisy, sigma, coords, *conditions)
    inference = torch.is_inference_mode_enabled()  # each thread has a mode of its own

    def some(*inputs: Tensor | None) -> Tensor:
        with torch.inference_mode(inference), torch.no_grad():
            return model(*inputs)

    inputs = (noisy, sigma.expand(num), coords.expand(num, -1, -1, -1), *conditions)
    return torch.cat(_current.map(some, inputs))


def backward(
    loss: nn.Module,
    inputs: Sequence[Tensor | None],
    weight: float | Tensor,
    computing: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor | None:
    """Add the gradients of a weighted sum of losses to those of the parameters, inside `sharing`.

    Shares are summed in the order of the samples, whichever thread is done first, so that runs repeat.

    Args:
        loss: gives the losses of samples, each without regard to the others.
        inputs: what it takes, each of n rows, or None.
        weight: of each loss in the sum, of all one number or ``(n,)``.
        computing: what each thread's losses are computed inside of, such as a number format.

    Returns:
        ``(n,)``, the losses, without a graph; None outside of `sharing`, where nothing is done.
    """
    if _current is None:
        return None
    parameters = [parameter for parameter in loss.parameters() if parameter.requires_grad]

    def some(weights: Tensor, *inputs: Tensor | None) -> tuple[Tensor, Sequence[Tensor | None]]:
        with computing():
            losses = loss(*inputs)
        return losses.detach(), torch.autograd.grad((weights * losses).sum(), parameters, allow_unused=True)

    num = next(len(value) for value in inputs if value is not None)
    results = _current.map(some, [torch.as_tensor(weight).expand(num), *inputs])
    for _, gradients in results:
        _add(parameters, gradients)
    return torch.cat([losses for losses, _ in results])


@contextmanager
def _all_threads() -> Iterator[None]:
    """Inside, torch divides each operation among all threads, unless this is one of those that share."""
    if _current is None or threading.get_ident() != _current.owner:
        yield
        return
    with _threads_of_torch(_current.num):
        yield


@contextmanager
def _threads_of_torch(num: int) -> Iterator[None]:
    """So many inside, for what this thread computes."""
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
    """How many share the work here: 1 outside of `sharing`."""
    return 1 if _current is None else _current.num


def run(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """What each of some functions gives that have nothing to do with each other and want no gradients."""
    if _current is None:
        return [task() for task in tasks]
    return _current.run([torch.no_grad()(task) for task in tasks])


def _add(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    """To what the parameters have, if they have any."""
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
