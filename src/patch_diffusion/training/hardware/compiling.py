"""Compiling of a training objective with torch.compile, and the check that it then computes the same.

A compiled module is made anew for each shape of its inputs, so that no shape is dynamic, which would be slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from patch_diffusion.denoise.compiling import arguments, explain_failure, reason_of
from patch_diffusion.denoise.objective import Batch, Objective

TOLERANCE = 1e-2
"""How much losses and gradients of a compiled pass may differ from those of an eager one, by their norms. Products in
TF32 are exact to 1e-3; a wrong kernel is off by far more."""

TOLERANCE_IN_HALF = 5e-2
"""The same in bf16 and fp16, whose intermediate results a compiled pass rounds less often."""

_NOISE = 0.02  # deviation


def compile_in_place(objective: Objective, graphs: int) -> None:
    """Compile an objective, which is called in as many shapes as ``graphs``; each is compiled when it first comes.

    Raises:
        InputError: torch cannot compile on this machine.
    """
    with explain_failure("engine.compile"):
        objective.compile(**arguments(graphs))


def undo(objective: Objective) -> None:
    """Let an objective run without the compiler again."""
    objective._compiled_call_impl = None  # torch has no other way back


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
                return reason_of(error)
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
            return reason_of(error)
    return ""


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm(tensors)) or 1e-30


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
