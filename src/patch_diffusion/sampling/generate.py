"""Whole images from a denoiser: one pass over the whole image, with the whole coordinate grid.

A model with a context does so twice: it makes the small copy of the image, and then the image that this is a copy of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.denoiser import Denoiser, evaluating
from patch_diffusion.denoise.threads import sharing
from patch_diffusion.errors import InputError
from patch_diffusion.sampling.bind import noise_range, wide
from patch_diffusion.sampling.choices import SOLVERS, options_of
from patch_diffusion.sampling.guidance.guide import Guidance
from patch_diffusion.sampling.pictures import to_image, visible, write_pixels
from patch_diffusion.sampling.schedules import SCHEDULES
from patch_diffusion.sampling.step import Callback
from patch_diffusion.sampling.view import Coords, View, view_of
from patch_diffusion.streams import generator


@dataclass(frozen=True)
class Sample:
    """One generated image: ``pixels`` (c, h, w), the ``seed`` it comes from, its class, and the settings.

    The pixels are such as the model was trained on, uint8 for ordinary pictures; latents where there is nothing at hand
    to decode them. ``range`` are the values that are shown black and white.

    >>> sample = Sample(torch.zeros(3, 24, 32, dtype=torch.uint8), seed=7, label=None, settings={})
    >>> sample.image.size, sample.save("pictures").name
    ((32, 24), '000007.png')
    """

    pixels: Tensor
    seed: int
    label: int | None
    settings: dict[str, Any]
    range: tuple[float, float] = (0, 255)

    @property
    def visible(self) -> Tensor:
        """What can be looked at of the pixels, see `visible`."""
        return visible(self.pixels, *self.range)

    @property
    def image(self) -> Image.Image:
        """What can be looked at, as a Pillow image."""
        return to_image(self.visible)

    def save(self, folder: str | Path) -> Path:
        """Write it as ``folder/000000.png``, named by its seed, or ``.npy`` where a PNG cannot hold it; the path."""
        return write_pixels(self.pixels, Path(folder) / f"{self.seed:06d}")


def generate(
    model: Denoiser,
    seeds: Iterable[int],
    *,
    steps: int = 18,
    solver: str = "heun",
    schedule: str = "karras",
    labels: int | Iterable[int] | None = None,
    guidance: float = 1.0,
    guide: str | Denoiser = "class",
    guidance_interval: tuple[float, float] | None = None,
    resolution: int | tuple[int, ...] | None = None,
    coords: Coords | None = None,
    tile: int | tuple[int, int] | None = None,
    overlap: int | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float | None = None,
    churn: float | None = None,
    churn_min: float | None = None,
    churn_max: float | None = None,
    churn_noise: float | None = None,
    eta: float | None = None,
    batch: int = 64,
    callback: Callback | None = None,
) -> Iterator[Sample]:
    """Sample whole images, one per seed, batch by batch as they are asked for.

    A seed's noise, also that of every step of a stochastic solver, is drawn by a generator of its own on the CPU, so a
    seed gives the same picture in any batch.

    Args:
        model: from `load`, or any `Denoiser`.
        seeds: integers of at least 0.
        steps: solver steps; "heun" and "stochastic_heun" evaluate the network 2 * steps - 1 times, all others steps
            times.
        solver: "heun", "euler", "dpm_solver_2m" or "dpm_solver_3m" (see `solvers`); or one that adds noise and so needs
            more steps: "stochastic_heun", "ancestral" or "euler_maruyama", in the model's process (see `stochastic`).
        schedule: where the steps are small: "karras", "vp", "ve" or "exponential" (see `schedules`).
        labels: a class for all, or one per seed. None: seed k gets class k mod classes where the model has classes.
        guidance: scale of guidance; 1 is none.
        guide: what guidance leads away from: "class", the model without the class (classifier-free, refused where
            labels were never dropped in training); "crops", the model on crops, or "crops:1/4"; or a weaker model,
            such as an earlier checkpoint. See `Guidance`.
        guidance_interval: noise levels (low, high] with guidance; all where None.
        resolution: side, or height and width; that of the training images where None. Any that the network takes. Of
            a model with a context, one that is not larger than this gives the small copies themselves.
        coords: how they lie on an image of another resolution: "stretch", "extend" or "repeat", see `view_of`.
        tile: side, or height and width, of overlapping tiles for images that are too large to be seen at once; the
            image itself may have any sides then.
        overlap: pixels that tiles overlap by; a quarter of their shorter side where None.
        sigma_min, sigma_max: range of noise levels; the model's own where None.
        rho: option of "karras" and "exponential"; theirs where None.
        churn, churn_min, churn_max, churn_noise: options of `stochastic_heun`; its own where None.
        eta: option of `ancestral`; its own where None.
        batch: images at a time.
        callback: called with every `Step` of every batch, as for a look at what the picture is becoming; not with
            those that make its small copy.

    Raises:
        InputError: at once, when settings do not suit the model or each other.

    >>> samples = generate(load("runs/digits"), seeds=range(2), steps=2, labels=7)
    >>> [tuple(sample.pixels.shape) for sample in samples]
    [(1, 16, 16), (1, 16, 16)]
    """
    view = view_of(model, resolution, coords=coords, tile=tile, overlap=overlap, batch=batch)
    churning = {"churn": churn, "churn_min": churn_min, "churn_max": churn_max, "churn_noise": churn_noise}
    solver_options = options_of("solver", solver, SOLVERS, {**churning, "eta": eta})
    schedule_options = options_of("schedule", schedule, SCHEDULES, {"rho": rho})
    channels = model.image_channels
    if channels is None:
        raise InputError("the network does not say how many channels its images have: set its attribute image_channels")
    sigmas = SCHEDULES[schedule](steps, *noise_range(model, sigma_min, sigma_max), **schedule_options)
    guiding = Guidance(guidance, guide, guidance_interval)
    guiding.check(model, view, sigmas)
    small = view.small(model)
    # So that the small copies by themselves are those that larger images of the same seeds are made from.
    stream = "small images" if model.context is not None and small is None else "sampling"
    jobs = jobs_of(model, seeds, labels)
    settings = {
        "steps": steps,
        "solver": solver,
        **solver_options,
        "schedule": schedule,
        **schedule_options,
        **guiding.settings,
        **view.settings,
        **({} if small is None else {"context": list(small.resolution)}),
        "sigma_min": float(sigmas[-2]),
        "sigma_max": float(sigmas[0]),
    }
    if solver == "euler_maruyama":
        solver_options["process"] = model.process
    solve = partial(SOLVERS[solver], **solver_options)
    # One level is no step: what the solver has against its options, it says now.
    solve(lambda noisy, sigma: noisy, sigmas[:1], sigmas[:1], noise=lambda index: sigmas[:1])

    levels = sigmas.to(wide(model.device))  # on the CPU: a solver that looks at one need not wait for the device

    def made(
        view: View,
        name: str,
        seeds: Sequence[int],
        conditions: Conditions,
        callback: Callback | None = None,
    ) -> Tensor:
        noise = partial(noise_of, seeds, (channels, *view.resolution), model.device, name=name)
        denoise = guiding.around(model, view, conditions, seeds, levels)
        return solve(denoise, noise(None) * levels[0], levels, noise=noise, callback=callback)

    def run() -> Iterator[Sample]:
        waiting = iter(jobs)
        while now := list(islice(waiting, view.images_at_once)):
            chosen = [seed for seed, _ in now]
            classes = [label for _, label in now]
            labels = None if classes[0] is None else torch.tensor(classes, device=model.device)
            conditions = Conditions(labels=labels)
            with evaluating(model), guiding.evaluating(), sharing(model), torch.inference_mode():
                if small is not None:
                    thumbnail = made(small, "small images", chosen, conditions).float()
                    conditions = replace(conditions, thumbnail=thumbnail)
                images = made(view, stream, chosen, conditions, callback)
                pixels, shown = model.codec.decode_with_range(images)
            for (seed, label), picture in zip(now, pixels.cpu(), strict=True):
                yield Sample(picture, seed, label, settings, shown)

    return run()


def noise_of(
    seeds: Sequence[int], shape: tuple[int, ...], device: torch.device, index: int | None, *, name: str = "sampling"
) -> Tensor:
    """Standard normal numbers (n, *shape) of a step, or of the start where None, each image's from its own seed."""

    def draws(seed: int) -> torch.Generator:
        if index is not None:
            return generator(seed, name, index)
        return torch.Generator().manual_seed(seed) if name == "sampling" else generator(seed, name)

    generators = [draws(seed) for seed in seeds]
    drawn = [torch.randn(shape, generator=each, dtype=torch.float64) for each in generators]
    return torch.stack(drawn).to(device, wide(device))


def jobs_of(model: Denoiser, seeds: Iterable[int], labels: int | Iterable[int] | None) -> list[tuple[int, int | None]]:
    """Seeds with their classes."""
    chosen = [int(seed) for seed in seeds]  # of NumPy, too
    for seed in chosen:
        if not 0 <= seed < 2**63:
            raise InputError(f"seeds are integers from 0 to 2^63 - 1, not {seed}")
    classes = model.num_classes
    if labels is None:
        return [(seed, seed % classes if classes else None) for seed in chosen]
    if not classes:
        raise InputError("this model was trained without classes, so none can be asked for")
    given = [int(label) for label in labels] if isinstance(labels, Iterable) else [int(labels)] * len(chosen)
    if len(given) != len(chosen):
        raise InputError(f"{len(chosen)} seeds need as many labels, not {len(given)}")
    for label in given:
        if not 0 <= label < classes:
            raise InputError(f"class {label} does not exist: this model has classes 0 to {classes - 1}")
    return list(zip(chosen, given, strict=True))
