"""Short trainings for checks and measurements: trainers of presets on images that are at hand, and fixed batches."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patch_diffusion.config import Config, Data
from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.data.images import ImageSet
from patch_diffusion.data.sources import open_data
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.objective import Batch, DenoisingObjective
from patch_diffusion.patches.coords import coordinate_grid
from patch_diffusion.presets import PRESETS
from patch_diffusion.runs.model import build_denoiser, build_network
from patch_diffusion.streams import generator
from patch_diffusion.training.build import build_trainer
from patch_diffusion.training.trainer import Trainer

DIGITS = replace(
    PRESETS["digits"],
    data=Data(source="digits", held_out=0.0),
    batch=16,
    minutes=None,
    samples=0,
    checkpoints=1,
    checkpoint_minutes=1e9,
    track=(),
)
"""The training of a check: a small network on the built-in digits; it has no budget."""

_SIDE, _NUM = 16, 8


def build(config: Config, out: Path, images: ImageSet | None = None) -> Trainer:
    """Build a silent trainer on images, or on those that the config names."""
    return build_trainer(config, images or open_data(config.data, show=False), out, show=False)


@contextmanager
def trainer_of(config: Config, images: ImageSet | None = None, **engine: Any) -> Iterator[Trainer]:
    """Yield a new trainer, whose folder goes afterwards, see `build`; ``engine`` has options of the hardware."""
    with tempfile.TemporaryDirectory() as folder:
        yield build(replace(config, engine=replace(config.engine, **engine)), Path(folder) / "run", images)


def random_images(side: int, *, num: int = 1024, channels: int = 3, dtype: torch.dtype = torch.uint8) -> ImageSet:
    """Return square images of random whole numbers, which have nothing to learn but take the usual time."""
    most = 2**16 if dtype is torch.uint16 else 2**8
    numbers = torch.randint(0, most, (num, channels, side, side), generator=torch.Generator().manual_seed(0))
    return ImageSet(numbers.to(dtype), codec=PixelCodec(str(dtype).removeprefix("torch.")))


def objective_of(device: torch.device, levels: int = 2) -> DenoisingObjective:
    """Return the objective of a small network on a device, with the same random weights on every device."""
    torch.manual_seed(0)
    network = build_network(
        replace(DIGITS.network, multipliers=(1, 2)[:levels], attention=(levels - 1,)), 1, 0, coords=True
    )
    with torch.no_grad():  # a new network predicts 0, and most of its gradients are 0, too
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    denoiser = build_denoiser(DIGITS, network, 0.5)
    denoiser.resolution = (_SIDE, _SIDE)
    return DenoisingObjective(denoiser.eval()).to(device)


def batch_of(device: torch.device) -> Batch:
    """Return a batch of whole images on a device, the same on every device."""
    random = generator(0, "doctor")
    clean, noise = (torch.randn(_NUM, 1, _SIDE, _SIDE, generator=random) for _ in range(2))
    sigma = torch.randn(_NUM, generator=random).exp()
    conditions = Conditions(coordinate_grid(_SIDE, _SIDE)).spread(clean)
    return Batch(clean.mul(0.5).to(device), sigma.to(device), noise.to(device), conditions.to(device))


def losses_and_gradients(objective: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the losses ``(n,)`` of a batch, and all gradients of their mean in one row, as float32 on the CPU."""
    objective.zero_grad()
    losses = objective(batch)
    losses.mean().backward()
    gradients = [parameter.grad.float().flatten() for parameter in objective.parameters() if parameter.grad is not None]
    return losses.detach().float().cpu(), torch.cat(gradients).cpu()


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the size of a difference of two tensors, relative to that of the expected one."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def repeats_to(device: torch.device) -> float:
    """Return to what difference a device computes the same again: to the bit on a CPU.

    The terms of a GPU's sums may come in any order.
    """
    return 0.0 if device.type == "cpu" else 1e-3
