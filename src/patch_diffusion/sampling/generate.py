"""Whole images from a denoiser: one pass over the whole image, with the whole coordinate grid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.denoise.denoiser import Denoiser, evaluating
from patch_diffusion.errors import InputError, did_you_mean
from patch_diffusion.patches.coords import coordinate_grid
from patch_diffusion.sampling.guidance.classifier_free import classifier_free
from patch_diffusion.sampling.pictures import to_image, write_picture
from patch_diffusion.sampling.schedules import karras_sigmas
from patch_diffusion.sampling.solvers import SOLVERS, Denoise


@dataclass(frozen=True)
class Sample:
    """One generated image: ``pixels`` (c, h, w) uint8, the ``seed`` it comes from, its class, and the settings."""

    pixels: Tensor
    seed: int
    label: int | None
    settings: dict[str, Any]

    @property
    def image(self) -> Image.Image:
        """As a Pillow image; 1, 3 or 4 channels."""
        return to_image(self.pixels)

    def save(self, folder: str | Path) -> Path:
        """Write it as ``folder/000000.png``, named by its seed; returns the path."""
        path = Path(folder) / f"{self.seed:06d}.png"
        write_picture(self.image, path)
        return path


def generate(
    model: Denoiser,
    seeds: Iterable[int],
    *,
    steps: int = 18,
    solver: str = "heun",
    labels: int | Iterable[int] | None = None,
    guidance: float = 1.0,
    resolution: int | tuple[int, int] | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
    batch: int = 64,
) -> Iterator[Sample]:
    """Sample whole images, one per seed, batch by batch as they are asked for.

    A seed's noise is drawn by a generator of its own on the CPU, so a seed gives the same picture in any batch.

    Args:
        model: from `load`, or any `Denoiser`.
        seeds: integers of at least 0.
        steps: solver steps; "heun" evaluates the network 2 * steps - 1 times, "euler" steps times.
        solver: "heun" or "euler".
        labels: a class for all, or one per seed. None: seed k gets class k mod classes where the model has classes.
        guidance: scale of classifier-free guidance; 1 is none. Refused where labels were never dropped in training.
        resolution: side, or height and width; that of the training images where None. Any that the network takes.
        sigma_min, sigma_max, rho: noise levels, see `karras_sigmas`; the model's own range where None.
        batch: images at a time.

    Raises:
        InputError: at once, when settings do not suit the model.
    """
    height, width = _resolution(model, resolution)
    if solver not in SOLVERS:
        raise InputError(f"there is no solver '{solver}'{did_you_mean(solver, SOLVERS)}")
    if guidance != 1 and not model.num_classes:
        raise InputError("guidance needs a class-conditional model, and this one has no classes")
    if guidance != 1 and not model.label_dropout:
        raise InputError(
            "guidance needs a model that has also learned images without their class, and this one was trained with "
            "network.label_dropout 0"
        )
    if batch < 1:
        raise InputError(f"a batch has at least 1 image, not {batch}")
    channels = model.image_channels
    if channels is None:
        raise InputError("the network does not say how many channels its images have: set its attribute image_channels")
    sigmas = karras_sigmas(steps, sigma_min or model.sigma_min, sigma_max or model.sigma_max, rho)
    jobs = _jobs(model, seeds, labels)
    settings = {
        "steps": steps,
        "solver": solver,
        "guidance": guidance,
        "resolution": [height, width],
        "sigma_min": float(sigmas[-2]),
        "sigma_max": float(sigmas[0]),
        "rho": rho,
    }

    def run() -> Iterator[Sample]:
        coords = coordinate_grid(height, width, device=model.device)
        levels = sigmas.to(_wide(model.device))
        waiting = iter(jobs)
        while now := list(islice(waiting, batch)):
            noise = torch.stack([_seed_noise(seed, (channels, height, width)) for seed, _ in now]).to(
                model.device, levels.dtype
            )
            classes = [label for _, label in now]
            bound = _bind(model, coords, None if classes[0] is None else torch.tensor(classes, device=model.device))
            if guidance != 1:
                bound = classifier_free(bound, _bind(model, coords, None), guidance)
            with evaluating(model), torch.inference_mode():
                pixels = PixelCodec().decode(SOLVERS[solver](bound, noise * levels[0], levels)).cpu()
            for (seed, label), picture in zip(now, pixels, strict=True):
                yield Sample(picture, seed, label, settings)

    return run()


def _bind(model: Denoiser, coords: Tensor, labels: Tensor | None) -> Denoise:
    """``denoise(noisy, sigma)``; the solver's state stays in its own, wider type."""

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        return model(noisy.float(), sigma.float(), coords, labels).to(noisy)

    return denoise


def _seed_noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _wide(device: torch.device) -> torch.dtype:
    """float64, but for devices that have none."""
    return torch.float32 if device.type == "mps" else torch.float64


def _resolution(model: Denoiser, resolution: int | tuple[int, int] | None) -> tuple[int, int]:
    shape = (resolution, resolution) if isinstance(resolution, int) else resolution or model.resolution
    if shape is None:
        raise InputError("this model does not know the resolution of its images: give resolution=(height, width)")
    if min(shape) < 1 or shape[0] % model.stride or shape[1] % model.stride:
        raise InputError(
            f"height and width must be multiples of {model.stride} for this network, not {shape[0]}x{shape[1]}"
        )
    return shape


def _jobs(model: Denoiser, seeds: Iterable[int], labels: int | Iterable[int] | None) -> list[tuple[int, int | None]]:
    """Seeds with their classes."""
    chosen = list(seeds)
    if any(seed < 0 for seed in chosen):
        raise InputError(f"seeds are integers from 0, not {min(chosen)}")
    classes = model.num_classes
    if labels is None:
        return [(seed, seed % classes if classes else None) for seed in chosen]
    if not classes:
        raise InputError("this model was trained without classes, so none can be asked for")
    given = [labels] * len(chosen) if isinstance(labels, int) else list(labels)
    if len(given) != len(chosen):
        raise InputError(f"{len(chosen)} seeds need as many labels, not {len(given)}")
    for label in given:
        if not 0 <= label < classes:
            raise InputError(f"class {label} does not exist: this model has classes 0 to {classes - 1}")
    return list(zip(chosen, given, strict=True))
