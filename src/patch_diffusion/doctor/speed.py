"""How fast training is: images a second, memory, and the share of the hardware's speed that is reached.

Speed is that of whole steps: data, optimizer and averages included. Utilisation is the operations of the network's
products and convolutions, forward and backward, over those of a product of matrices in the same number format.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from statistics import fmean, median
from typing import Any, Literal

import torch

from patch_diffusion.config import Config
from patch_diffusion.devices import choose_device, processor_has_bf16
from patch_diffusion.doctor.counting import count_steps
from patch_diffusion.doctor.machines import Machine
from patch_diffusion.doctor.roofline import predict
from patch_diffusion.doctor.trials import random_images, trainer_of
from patch_diffusion.patches.schedule import Shape
from patch_diffusion.presets import PRESETS
from patch_diffusion.races.arms import whole_images
from patch_diffusion.training.trainer import Trainer

Format = Literal["auto", "fp32", "bf16", "fp16"]

ON_CPU = ("small", "ncsnpp-small", "adm-small", "dit-small")
"""Presets that suit a CPU, most used first."""

ON_GPU = ("small", "ddpmpp-64", "adm-64", "dit-small", "ncsnpp-64", "ncsnpp-small", "adm-small")
"""Presets that suit a GPU, most used first."""

LARGEST_BATCH = 128
"""The most whole images in a step here; the published batches are for eight GPUs and more."""

_SIDES = (512, 1024, 2048, 4096)  # of the matrices
_COPIED = (2**24, 2**28)  # numbers of float32, on a CPU and on a GPU
_FIRST_STEPS = 5
_LONGEST_PRODUCTS = 0.5  # seconds for matrices of one size


def usual_format() -> Format:
    """Return the number format in which `train` computes for images of 64 pixels."""
    return "bf16" if choose_device().type == "cpu" and processor_has_bf16() else "auto"


def measure(
    preset: str,
    number_format: Format = "auto",
    *,
    compiled: bool = False,
    whole: bool = False,
    side: int = 64,
    batch: int | None = None,
    steps: int = 40,
    seconds: float = math.inf,
) -> dict[str, Any]:
    """Measure the training of a preset on random images, in this process, which is best a new one.

    Args:
        preset: a name of `PRESETS`.
        number_format: see `Engine`.
        compiled: compile the network.
        whole: train on whole images without coordinates, and not on the preset's patches.
        side: height and width of the images.
        batch: whole images in a step; None: the preset's, or `LARGEST_BATCH`.
        steps: the number of steps to time.
        seconds: end sooner once this time is over.

    Returns:
        What `speed_of_steps` returns; ``format``, the one that the device took; ``batch``; and ``peak_bytes``, the most
        memory that torch has taken on a CUDA GPU, or that this process has had above what it had before; None if it is
        not known.
    """
    before = peak_of_process()
    config = _config(preset, number_format, compiled=compiled, whole=whole, batch=batch)
    with trainer_of(config, random_images(side)) as trainer:
        with trainer.engine.threads(trainer.state.denoiser):
            found = speed_of_steps(trainer, steps, seconds)
        peak = None if before is None else (peak_of_process() or 0) - before
        if trainer.engine.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
        return {
            **found,
            "format": str(trainer.engine.type).removeprefix("torch."),
            "batch": trainer.config.batch,
            "peak_bytes": peak,
        }


def _config(
    preset: str, number_format: Format, *, compiled: bool = False, whole: bool = False, batch: int | None = None
) -> Config:
    """Return the config that is measured, see `measure`."""
    config = PRESETS[preset]
    usual = config.batch if isinstance(config.batch, int) else LARGEST_BATCH
    config = replace(
        config,
        batch=batch or min(usual, LARGEST_BATCH),
        engine=replace(config.engine, precision=number_format, compile=compiled),
        minutes=None,
        images=None,
        samples=0,
    )
    return whole_images(config) if whole else config


def predicted_speeds(
    ways: Sequence[tuple[str, bool]], half: bool, products: dict[str, float], bandwidth: float, side: int = 64
) -> list[float]:
    """Predict the images a second of eager training by the roofline model, from what the GPU was measured to reach.

    Args:
        ways: presets, each with True for whole images or False for its patches.
        half: True if the network computes in bf16 or fp16.
        products: operations a second of matrix products, by number format.
        bandwidth: bytes a second that are copied.
        side: height and width of the images.
    """
    fp32 = products["float32"]
    gpu = Machine("this", fp32, fp32, products.get("bfloat16", fp32), bandwidth, reached=1.0, moved=1.0)
    found = []
    for preset, whole in ways:
        steps = count_steps(_config(preset, "bf16" if half else "fp32", whole=whole), (side, side))
        seconds = sum(step.size.probability * predict(step.kernels, gpu).seconds for step in steps)
        found.append(sum(step.size.probability * step.num for step in steps) / seconds)
    return found


def speed_of_steps(trainer: Trainer, steps: int, seconds: float = math.inf) -> dict[str, float]:
    """Time the steps of a trainer as they come, after some that have seen all patch sizes.

    The sizes of a few steps are a matter of chance. So each size is timed by itself, and counts by its share.

    Args:
        trainer: a trainer of a stochastic schedule.
        steps: the number of steps to time, or more until each size has been timed.
        seconds: end sooner once this time is over and each size has been timed.

    Returns:
        ``images_per_second``, ``steps_per_second``, ``flops_per_second``, and ``seconds_of_first_steps``.
    """
    began, seen = time.perf_counter(), set[Shape]()
    sizes = trainer.schedule.sizes_for(trainer.images.resolution, trainer.state.denoiser.stride)
    while len(seen) < len(sizes) or trainer.state.counters.step < _FIRST_STEPS:
        seen.add(trainer.train_step(0.5)[0].shape)
    trainer.engine.synchronize()
    timed = time.perf_counter()
    marks, shapes = [_mark(trainer)], list[Shape]()
    while len(shapes) < steps or len({*shapes}) < len(sizes):
        shapes.append(trainer.train_step(0.5)[0].shape)
        marks.append(_mark(trainer))
        if len({*shapes}) == len(sizes) and time.perf_counter() - timed > seconds:
            break
    trainer.engine.synchronize()
    times: dict[Shape, list[float]] = {size.shape: [] for size in sizes}
    for shape, (first, last) in zip(shapes, pairwise(marks), strict=True):
        times[shape].append(_between(first, last))
    each = sum(size.probability * fmean(times[size.shape]) for size in sizes)
    images = {size: size.probability * size.num_images(trainer.batches.batch) for size in sizes}
    return {
        "images_per_second": sum(images.values()) / each,
        "steps_per_second": 1 / each,
        "flops_per_second": sum(num * trainer.flops[size.shape] for size, num in images.items()) / each,
        "seconds_of_first_steps": timed - began,
    }


def _mark(trainer: Trainer) -> torch.cuda.Event | float:
    """Return the moment when the work so far is done; on a CUDA GPU an event, for which nobody has to wait."""
    if trainer.engine.device.type == "cuda":
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
    trainer.engine.synchronize()
    return time.perf_counter()


def _between(first: Any, last: Any) -> float:
    """Return the seconds between two moments that are over."""
    return last - first if isinstance(first, float) else first.elapsed_time(last) / 1000


def rates(number_formats: Sequence[str]) -> dict[str, Any]:
    """Return what the usual device reaches: ``products``, by the number formats that it has, and ``bandwidth``."""
    products: dict[str, float] = {}
    for name in number_formats:
        with suppress(RuntimeError, TypeError):
            products[name] = rate_of_products(choose_device(), getattr(torch, name))
    return {"products": products, "bandwidth": rate_of_copies(choose_device())}


def rate_of_copies(device: torch.device) -> float:
    """Return the bytes a second that are read and written where large tensors are copied on a device."""
    numbers = torch.zeros(_COPIED[device.type == "cuda"], device=device)
    copy, seconds = torch.empty_like(numbers), []
    for _ in range(6):
        began = time.perf_counter()
        copy.copy_(numbers)
        _ = copy[0].item()  # waits for the device
        seconds.append(time.perf_counter() - began)
    return 2 * numbers.nbytes / median(seconds)


def rate_of_products(device: torch.device, number_format: torch.dtype) -> float:
    """Return the operations a second of a product of two matrices, of the size at which they are most."""
    rates = []
    for side in _SIDES if device.type == "cuda" else _SIDES[:2]:
        first, second = (torch.randn(side, side, device=device, dtype=number_format) for _ in range(2))
        seconds: list[float] = []
        while len(seconds) < 10 and not (len(seconds) > 2 and sum(seconds) > _LONGEST_PRODUCTS):
            began = time.perf_counter()
            for _ in range(4):
                product = torch.mm(first, second)
            _ = product[0, 0].item()  # pyright: ignore[reportPossiblyUnboundVariable]  # waits for the device
            seconds.append((time.perf_counter() - began) / 4)
        rates.append(2 * side**3 / median(seconds))
    return max(rates)


def peak_of_process() -> int | None:
    """Return the most memory, in bytes, that this process has had until now; None if the system does not say."""
    try:
        import resource
    except ImportError:  # on Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
