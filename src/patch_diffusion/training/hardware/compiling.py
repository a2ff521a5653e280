"""Compiling of a training objective with torch.compile, and the check that it then computes the same.

A compiled module is made anew for each shape of its inputs, so that no shape is dynamic, which would be slower.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from patch_diffusion.denoise.objective import Batch, Objective
from patch_diffusion.errors import option_error

BACKEND = "inductor"
"""The compiler of torch that makes kernels of a graph."""

TOLERANCE = 1e-2
"""How much losses and gradients of a compiled pass may differ from those of an eager one, by their norms. Products in
TF32 are exact to 1e-3; a wrong kernel is off by far more."""

TOLERANCE_IN_HALF = 5e-2
"""The same in bf16 and fp16, whose intermediate results a compiled pass rounds less often."""

_NOISE = 0.02  # deviation


def compile_in_place(objective: Objective, graphs: int) -> None:
    """Compile an objective, which is called in as many shapes as ``graphs``; each is compiled when it first comes.

    torch stops compiling after some graphs, by default 8, so these come on top of what it allows.

    Raises:
        InputError: torch cannot compile on this machine.
    """
    with explain_failure():
        config: Any = torch._dynamo.config
        own: dict[str, Any] = {}
        if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
            own = {"recompile_limit": config.cache_size_limit + graphs, "isolate_recompiles": True}
        else:
            config.cache_size_limit += graphs
        config.accumulated_cache_size_limit += graphs
        objective.compile(dynamic=False, backend=BACKEND, **own)


def undo(objective: Objective) -> None:
    """Let an objective run without the compiler again."""
    objective._compiled_call_impl = None  # torch has no other way back


@contextmanager
def explain_failure() -> Iterator[None]:
    """Replace an error of the compiler in the with block by an InputError of one sentence."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        reason = _reason(error)
    except RuntimeError as error:
        if "torch.compile" not in str(error) and "Dynamo" not in str(error):  # as on a Python that is too new for it
            raise
        reason = _reason(error)
    else:
        return
    raise option_error("engine.compile", f"cannot compile the network on this machine ({reason}): leave it out")


def difference(
    module: nn.Module,
    objective: Objective,
    batch: Batch,
    graphs: int,
    autocast: Callable[[], AbstractContextManager[Any]],
    tolerance: float,
) -> str:
    """Compile an objective and return how it fails or differs from before; an empty text if it does not.

    Losses and gradients are compared without dropout, whose random numbers a compiler may draw in another order, and
    with noise on the weights, as networks begin with zeros that hide most of what they compute.

    Args:
        module: the objective, or a module around it.
        objective: the objective, not compiled so far.
        batch: samples to compare on.
        graphs: see `compile_in_place`.
        autocast: makes the context manager in which losses are computed.
        tolerance: the largest norm of a difference, as a share of the norm.
    """
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]

    def passes() -> list[Tensor]:
        torch.manual_seed(0)  # for networks that draw random numbers otherwise
        with autocast():
            losses = module(batch)
        gradients = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
        return [losses.detach(), *(gradient for gradient in gradients if gradient is not None)]

    dropouts = [each for each in objective.modules() if isinstance(each, nn.Dropout) and each.p > 0]
    with _unchanged(objective):
        torch.manual_seed(0)
        for parameter in parameters:
            parameter.data += _NOISE * torch.randn_like(parameter)
        with _without(dropouts):
            expected = passes()
            try:
                compile_in_place(objective, graphs)
                found = passes()
            except Exception as error:
                return _reason(error)
        for what, pairs in (
            ("losses", [(found[0], expected[0])]),
            ("gradients", list(zip(found[1:], expected[1:], strict=True))),
        ):
            off = _norm([one - two for one, two in pairs]) / _norm([two for _, two in pairs])
            if not off <= tolerance:  # also if it is not a number
                return f"its {what} differ by {off:.1g} of their size, and {tolerance:g} is allowed"
        try:
            if dropouts:
                passes()
        except Exception as error:
            return _reason(error)
    return ""


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm(tensors)) or 1e-30


def _reason(error: BaseException) -> str:
    """Return the first line of what went wrong, without the compiler's advice on where to look."""
    lines = str(getattr(error, "inner_exception", error)).strip().splitlines() or [type(error).__name__]
    return lines[0][:160].rstrip(".: ")


@contextmanager
def _without(dropouts: list[nn.Dropout]) -> Iterator[None]:
    shares = [dropout.p for dropout in dropouts]
    for dropout in dropouts:
        dropout.p = 0.0
    try:
        yield
    finally:
        for dropout, share in zip(dropouts, shares, strict=True):
            dropout.p = share


@contextmanager
def _unchanged(objective: Objective) -> Iterator[None]:
    """Restore the weights and buffers of an objective, and torch's random numbers, after the with block."""
    before = {tensor: tensor.detach().clone() for tensor in (*objective.parameters(), *objective.buffers())}
    devices = [tensor.device for tensor in before if tensor.device.type == "cuda"][:1]
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        with torch.no_grad():
            for tensor, content in before.items():
                tensor.copy_(content)
