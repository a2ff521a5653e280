"""Comparisons of the same computation done in several ways, each to a stated tolerance: devices, threads, formats.

Differences are relative: the size of the difference over that of what is expected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from patch_diffusion.devices import choose_device
from patch_diffusion.doctor.apart import AbsentError
from patch_diffusion.doctor.checks import DEVICES
from patch_diffusion.doctor.trials import (
    DIGITS,
    batch_of,
    difference,
    losses_and_gradients,
    objective_of,
    repeats_to,
    trainer_of,
)
from patch_diffusion.sampling.generate import generate

_FP32 = {"losses": 1e-4, "gradients": 1e-3, "samples": 1e-2}
"""Tolerances of two ways to compute in fp32. In samples small differences add up over the steps of the solver."""

_ROUNDED = {"losses": 3e-2, "gradients": 1e-1}
"""Tolerances of bf16, which rounds to 8 bits, and of TF32, which rounds to 11."""


@dataclass(frozen=True)
class Pair:
    """Two ways to compute the same, compared by a function that returns their differences by name.

    Args:
        name: the two ways.
        function: returns a dict of (difference, tolerance) by the name of what is compared.
        devices: the types of device that it is about.
        quick: True if it belongs to a quick look, too.
    """

    name: str
    function: Callable[[], dict[str, list[float]]]
    devices: tuple[str, ...] = DEVICES
    quick: bool = False


def gpu_and_cpu() -> dict[str, list[float]]:
    """Compare the usual device with the CPU, in fp32 without TF32."""
    device = choose_device()
    with _tf32(False):
        return _compared(_results(device), _results(torch.device("cpu")), _FP32)


def tf32_and_fp32() -> dict[str, list[float]]:
    """Compare products in TF32 with those in fp32, on a GPU."""
    device = choose_device()
    with _tf32(False):
        expected = _results(device)
    with _tf32(True):
        return _compared(_results(device), expected, _ROUNDED)


def bf16_and_fp32() -> dict[str, list[float]]:
    """Compare training in bf16 with fp32, on the usual device."""
    device = choose_device()
    with _tf32(False):
        expected = _results(device)
    with torch.autocast(device.type, torch.bfloat16):
        return _compared(_results(device), expected, _ROUNDED)


def threads_and_one() -> dict[str, list[float]]:
    """Compare all threads of the CPU with one."""
    num, cpu = torch.get_num_threads(), torch.device("cpu")
    if num == 1:
        raise AbsentError("there is one thread")
    found = _results(cpu)
    torch.set_num_threads(1)
    try:
        return _compared(found, _results(cpu), _FP32)
    finally:
        torch.set_num_threads(num)


def two_runs(steps: int = 4) -> dict[str, list[float]]:
    """Train twice with the same seed on the usual device, and compare weights: to the bit on a CPU."""
    rows = []
    for _ in range(2):
        with trainer_of(DIGITS) as trainer, trainer.engine.threads(trainer.state.denoiser):
            for step in range(steps):
                trainer.train_step(step / steps)
            weights = trainer.state.network.state_dict().values()
            rows.append(torch.cat([weight.flatten().float().cpu() for weight in weights]))
    return _compared({"weights": rows[0]}, {"weights": rows[1]}, {"weights": repeats_to(choose_device())})


PAIRS = (
    Pair("GPU and CPU, fp32", gpu_and_cpu, ("cuda", "mps"), quick=True),
    Pair("all threads and one", threads_and_one, ("cpu",), quick=True),
    Pair("bf16 and fp32", bf16_and_fp32),
    Pair("TF32 and fp32", tf32_and_fp32, ("cuda",)),
    Pair("two runs of one seed", two_runs),
)
"""All comparisons, in the order in which they run."""


def _results(device: torch.device) -> dict[str, Tensor]:
    """Return losses, gradients and samples of the same weights and batch on a device."""
    objective = objective_of(device)
    losses, gradients = losses_and_gradients(objective, batch_of(device))
    made = [sample.pixels.float() for sample in generate(objective.denoiser, range(2), steps=8)]
    return {"losses": losses, "gradients": gradients, "samples": torch.stack(made)}


def _compared(
    found: dict[str, Tensor], expected: dict[str, Tensor], tolerances: dict[str, float]
) -> dict[str, list[float]]:
    return {name: [difference(found[name], expected[name]), most] for name, most in tolerances.items()}


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Allow products and convolutions in TF32 on NVIDIA GPUs in the with block, or forbid them."""
    before: tuple[Any, ...] = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
