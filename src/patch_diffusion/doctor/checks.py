"""Checks of what works on a machine: each is a function that returns what it found, or raises an error that says why.

A check runs in a process of its own, see `apart`, and begins with a network of random weights or a new run.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from patch_diffusion.config import Augment
from patch_diffusion.devices import choose_device
from patch_diffusion.doctor.apart import AbsentError, FailedError
from patch_diffusion.doctor.machine import has_compiler
from patch_diffusion.doctor.trials import (
    DIGITS,
    batch_of,
    build,
    difference,
    losses_and_gradients,
    objective_of,
    random_images,
    repeats_to,
    trainer_of,
)
from patch_diffusion.errors import InputError, counted
from patch_diffusion.files import read_tensors
from patch_diffusion.processes import run_processes
from patch_diffusion.runs.model import load
from patch_diffusion.sampling.generate import generate
from patch_diffusion.sampling.options import Sampling
from patch_diffusion.sampling.stochastic import SOLVERS
from patch_diffusion.training.train import train

COMPILE = "compile"
"""The name of the check of ``torch.compile``."""

STEPS = 40
"""Training steps in which the loss has to fall."""

_FALLS_TO = 0.85  # of the first losses
_ALIKE, _GRADIENTS_ALIKE = 1e-4, 1e-3  # relative differences of two ways to compute the same in fp32


DEVICES = ("cpu", "cuda", "mps")
"""The types of device that training takes."""


@dataclass(frozen=True)
class Check:
    """A check of one thing that training or sampling needs.

    Args:
        name: the name of the thing.
        function: returns what it found as text; see `apart` for how it fails.
        advice: what to do if it fails.
        arguments: those of the function.
        seconds: the longest time that it may take.
        devices: the types of device that it is about.
        quick: True if it belongs to a quick look, too.
    """

    name: str
    function: Callable[..., str]
    advice: str
    arguments: tuple[Any, ...] = ()
    seconds: float = 60.0
    devices: tuple[str, ...] = DEVICES
    quick: bool = False


def learns(precision: str, steps: int = STEPS) -> str:
    """Train a small network on digits in a number format; the loss has to fall."""
    device = choose_device()
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise AbsentError("this GPU has no bf16; training takes another number format")
    with trainer_of(DIGITS, precision=precision) as trainer, trainer.engine.threads(trainer.state.denoiser):
        losses = [float(trainer.train_step(step / steps)[1]) for step in range(steps)]
    few = max(steps // 5, 1)
    first, last = fmean(losses[:few]), fmean(losses[-few:])
    told = f"loss from {first:.2f} to {last:.2f} in {counted(steps, 'step')}"
    if not last < _FALLS_TO * first:  # also if they are not finite
        raise FailedError(f"the network does not learn: {told}")
    return told


def tf32() -> str:
    """Compare products in TF32 with those in fp32, for speed and for what they round away."""
    device = choose_device()
    if torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        raise AbsentError("TF32 is a format of NVIDIA GPUs from Ampere (2020) on")
    random = torch.Generator().manual_seed(0)
    first, second = (torch.randn(2048, 2048, generator=random).to(device) for _ in range(2))
    before, found = torch.get_float32_matmul_precision(), {}
    try:
        for name in ("highest", "high"):
            torch.set_float32_matmul_precision(name)
            torch.mm(first, second)
            torch.cuda.synchronize(device)
            began = time.perf_counter()
            for _ in range(20):
                result = torch.mm(first, second)
            torch.cuda.synchronize(device)
            found[name] = (time.perf_counter() - began, result.cpu())  # pyright: ignore[reportPossiblyUnboundVariable]
    finally:
        torch.set_float32_matmul_precision(before)
    apart, speed = difference(found["high"][1], found["highest"][1]), found["highest"][0] / found["high"][0]
    if not apart < 1e-2:
        raise FailedError(f"products in TF32 differ by {apart:.1e}, more than their format explains")
    return f"products {speed:.1f} times as fast as in fp32, different by {apart:.0e}"


def compiles() -> str:
    """Compile the training objective, and compare losses and gradients with those of the eager one."""
    device = choose_device()
    if device.type == "cpu" and not has_compiler():
        raise AbsentError("there is no C++ compiler, which torch.compile needs on a CPU")
    if device.type == "cuda" and find_spec("triton") is None:
        raise AbsentError("triton is not installed, which torch.compile needs on a GPU")
    objective, batch = objective_of(device, levels=1), batch_of(device)  # a larger one takes minutes on a CPU
    losses, gradients = losses_and_gradients(objective, batch)
    began = time.perf_counter()
    objective.compile(dynamic=False)
    found = losses_and_gradients(objective, batch)
    seconds = time.perf_counter() - began
    apart = difference(found[0], losses), difference(found[1], gradients)
    if not (apart[0] < _ALIKE and apart[1] < _GRADIENTS_ALIKE):
        raise FailedError(f"compiled and eager differ: losses by {apart[0]:.1e}, gradients by {apart[1]:.1e}")
    return f"agrees with eager: losses to {apart[0]:.0e}, gradients to {apart[1]:.0e}; compiled in {seconds:.0f} s"


def fused_optimizer() -> str:
    """Compare fused AdamW, which training uses, with the plain one, and let it leave out a step as training does."""
    device = choose_device()
    random = torch.Generator().manual_seed(0)
    start, gradient = (torch.randn(64, 64, generator=random).to(device) for _ in range(2))
    weights = []
    for fused in (True, False):
        weight = torch.nn.Parameter(start.clone())
        optimizer = torch.optim.AdamW([weight], lr=1e-2, fused=fused, foreach=False)
        for step in range(3):
            weight.grad = gradient * (step + 1)
            optimizer.step()
        weights.append(weight.detach().clone())
        if fused:
            optimizer.found_inf = torch.ones((), device=device)  # pyright: ignore[reportAttributeAccessIssue]
            optimizer.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]
            optimizer.step()
            if not torch.equal(weight.detach(), weights[0]):
                raise FailedError("fused AdamW takes a step that it is to leave out")
    apart = difference(weights[0].cpu(), weights[1].cpu())
    if not apart < 1e-5:
        raise FailedError(f"fused AdamW and the plain one differ by {apart:.1e}")
    return f"agrees with the plain AdamW to {apart:.0e}, and leaves out a step where it is told to"


def optimizer_learns(kind: str) -> str:
    """Train some steps with another optimizer; weights have to change, and losses to be finite."""
    config = replace(DIGITS, optimizer=replace(DIGITS.optimizer, kind=kind))
    try:
        with trainer_of(config) as trainer, trainer.engine.threads(trainer.state.denoiser):
            losses = [float(trainer.train_step(step / 10)[1]) for step in range(10)]
    except InputError as error:
        raise AbsentError(str(error)) from None
    if not all(map(math.isfinite, losses)):
        raise FailedError("the loss is not finite")
    return f"loss from {losses[0]:.2f} to {losses[-1]:.2f} in 10 steps"


def pinned_copies() -> str:
    """Copy pinned memory to the GPU without waiting, and compare what arrives, and how fast."""
    device = choose_device()
    pageable = torch.randint(0, 256, (2**27,), dtype=torch.uint8)
    pinned = pageable.pin_memory()
    rates = {}
    for name, tensor in (("pageable", pageable), ("pinned", pinned)):
        arrived = tensor.to(device, non_blocking=True)
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        for _ in range(4):
            arrived = tensor.to(device, non_blocking=True)
        torch.cuda.synchronize(device)
        rates[name] = 4 * tensor.numel() / (time.perf_counter() - began)
        if not torch.equal(arrived.cpu(), pageable):
            raise FailedError(f"a copy of {name} memory arrives changed")
    return f"{rates['pinned'] / 1e9:.1f} GB/s, {rates['pageable'] / 1e9:.1f} GB/s without pinning"


def shares_batches(num: int | None = None) -> str:
    """Train with several processes, CPU with gloo or a GPU each with NCCL, and compare with one process.

    Args:
        num: the number of processes on the CPU; None for as many as there are GPUs.
    """
    device = "cpu" if num else "cuda"
    if num is None:
        num = torch.cuda.device_count()
        if not torch.distributed.is_nccl_available():
            raise AbsentError("this torch has no NCCL")
    if num == 1:
        run_processes(1, _sum_with_nccl)
        return "works for the one GPU that is there; with more they would share a training here"
    with tempfile.TemporaryDirectory() as folder:
        for processes in (1, num):
            config = replace(DIGITS, steps=3, engine=replace(DIGITS.engine, device=device, processes=processes))
            train(config, Path(folder) / str(processes), show=False)
        apart = difference(*(_weights_of(Path(folder) / str(processes)) for processes in (num, 1)))
    if not apart < _ALIKE:
        raise FailedError(f"{num} processes end with other weights than one: {apart:.1e}")
    return f"{num} processes end with the weights of one, to {apart:.0e}"


def _sum_with_nccl() -> None:
    import torch.distributed as dist

    dist.init_process_group("nccl")
    value = torch.ones(4, device="cuda")
    dist.all_reduce(value)
    dist.destroy_process_group()
    if float(value.sum()) != 4.0:
        raise InputError("a sum over one GPU is wrong")


def resumes(steps: int = 6) -> str:
    """Stop a run half way, continue it from its checkpoint, and compare with a run that never stopped."""
    with tempfile.TemporaryDirectory() as folder:
        whole, stopped = (build(DIGITS, Path(folder) / name) for name in ("whole", "stopped"))
        whole.fit(steps=steps)
        with stopped.in_laps(steps=steps) as train_until:
            train_until(0.5)
            stopped.save()
        continued = build(DIGITS, stopped.run.path)
        continued.fit(steps=steps)
        apart = difference(_weights_of(continued.run.path), _weights_of(whole.run.path))
    if not apart <= repeats_to(choose_device()):
        raise FailedError(f"a run that was stopped ends with other weights: different by {apart:.1e}")
    return f"a run that was stopped ends with the same weights, {f'to {apart:.0e}' if apart else 'bit for bit'}"


def saves(steps: int = 2) -> str:
    """Write a model, load it, and compare what the two sample."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(DIGITS, Path(folder) / "run")
        model = trainer.fit(steps=steps)
        loaded = load(trainer.run.path)
        one, other = (next(generate(each, seeds=[0], steps=4)).pixels for each in (model, loaded))
    if not torch.equal(one, other):
        raise FailedError("a model that was loaded samples other images")
    return "a model that was loaded samples the same images"


def deep_pixels(steps: int = 3) -> str:
    """Train on images of 16 bits, whole and in patches, mirrored at random, and sample some."""
    config = replace(DIGITS, data=replace(DIGITS.data, source="", augment=Augment(flip=0.5)))
    images = random_images(16, num=64, channels=1, dtype=torch.uint16)
    with trainer_of(config, images) as trainer:
        losses = [float(trainer.train_step(step / steps)[1]) for step in range(steps)]
        pixels = next(generate(trainer.state.average.denoiser, seeds=[0], steps=2)).pixels
    if not all(map(math.isfinite, losses)) or pixels.dtype is not torch.uint16:
        raise FailedError(f"losses {losses}, samples of {pixels.dtype}")
    return f"{counted(steps, 'step')}, and a sample of 16 bits"


def samples(steps: int = 4) -> str:
    """Sample with every solver; pixels have to be finite."""
    model, wrong = objective_of(choose_device()).denoiser, []
    for name in SOLVERS:
        try:
            list(generate(model, range(2), Sampling(solver=name), steps=steps))
        except Exception as error:
            wrong.append(f"{name} ({type(error).__name__})")
    if wrong:
        raise FailedError(f"not with {', '.join(wrong)}")
    return f"finite with all of {len(SOLVERS)} solvers"


def _weights_of(run: Path) -> Tensor:
    """Return the averaged weights of a run in one row."""
    tensors = read_tensors(run / "model.safetensors")
    return torch.cat([tensors[name].flatten().float() for name in sorted(tensors)])


_REPORT = "open an issue with this report"
_TORCH = "install a torch that suits this machine (pytorch.org), then run this again"

_CUDA = ("cuda",)

CHECKS = (
    Check("training in fp32", learns, _TORCH, ("fp32",), quick=True),
    Check("training in bf16", learns, "train with --engine.precision fp32", ("bf16",), quick=True),
    Check("training in fp16", learns, "train with --engine.precision fp32", ("fp16",), devices=_CUDA, quick=True),
    Check("TF32", tf32, _REPORT, devices=_CUDA),
    Check("sampling", samples, "take another solver, as in --solver heun", quick=True),
    Check("saving and loading", saves, "see that the disk has room, and open an issue with this report", quick=True),
    Check("resuming", resumes, f"do not stop runs on this machine, and {_REPORT}", quick=True),
    Check("16-bit images", deep_pixels, "make 8 bits of your images, as prepare does with --data.mode RGB"),
    Check("fused optimizer", fused_optimizer, _TORCH),
    Check("optimizer muon", optimizer_learns, "train with --optimizer.kind adamw", ("muon",)),
    Check("pinned copies", pinned_copies, "see how much memory processes may lock (ulimit -l)", devices=_CUDA),
    Check("compile", compiles, "leave out --engine.compile", seconds=200.0),
    Check("two processes", shares_batches, "train with one process: leave out --engine.processes", (2,), 90.0),
    Check("NCCL", shares_batches, "set NCCL_DEBUG=INFO, and train with one GPU until it works", (), 150.0, _CUDA),
)
"""All checks, in the order in which they run."""
